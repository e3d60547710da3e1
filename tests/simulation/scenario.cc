#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/lifecycle.h"
#include "tests/simulation/simulation.h"

// What users and fate do to the deployment.
namespace ringmaster::simulation {
namespace {

template <typename Request>
void SetName(const std::string& name, Request* request) {
  request->set_name(name);
}
void SetName(const std::string& name, v1::UpdateTrainingJobRequest* request) {
  request->mutable_training_job()->set_name(name);
}

// The one that is asked for, or `now`.
template <typename Request>
int32_t PriorityIn(const Request&, int32_t now) {
  return now;
}
int32_t PriorityIn(const v1::UpdateTrainingJobRequest& request, int32_t) {
  return request.training_job().spec().priority();
}

}  // namespace

void Simulation::PlanUsers() {
  const int workers = static_cast<int>(scheduler_.Int(1, 6));
  for (int i = 0; i < workers; ++i) {
    const std::string name = absl::StrCat("workers/w", i);
    scheduler_.After(scheduler_.Ms(0, 3000), [this, name] { StartProcess(name); });
  }
  const auto jobs = static_cast<size_t>(scheduler_.Int(1, 4));
  submissions_.resize(jobs);
  for (size_t i = 0; i < jobs; ++i) {
    Submission& submission = submissions_[i];
    submission.request.set_request_id(
        absl::StrFormat("%08x-0000-4000-8000-%012x", i, scheduler_.Bits() & 0xFFFFFFFFFFFF));
    v1::TrainingJob* job = submission.request.mutable_training_job();
    (*job->mutable_labels())["submission"] = absl::StrCat(i);
    v1::TrainingJobSpec* spec = job->mutable_spec();
    spec->mutable_model()->set_preset("tiny");
    spec->mutable_data()->add_paths("/data");
    spec->mutable_data()->set_sequence_length(4096);
    const int ring = static_cast<int>(scheduler_.Int(1, 3));
    const int replicas = scheduler_.Chance(0.2) ? 2 : 1;
    spec->mutable_parallel()->set_ring_size(ring);
    spec->mutable_parallel()->set_replicas(replicas);
    submission.satisfiable = ring * replicas <= workers;
    spec->set_steps(scheduler_.Int(5, 400));
    spec->mutable_checkpoint()->set_interval_steps(scheduler_.Chance(0.2) ? -1
                                                                          : scheduler_.Int(3, 30));
    spec->mutable_checkpoint()->set_keep_last(static_cast<int32_t>(scheduler_.Int(1, 3)));
    spec->mutable_recovery()->mutable_rejoin_timeout()->set_seconds(scheduler_.Int(2, 20));
    spec->mutable_recovery()->mutable_abort_deadline()->set_seconds(1);
    if (scheduler_.Chance(0.1)) spec->mutable_recovery()->set_episodes_max(3);
    if (scheduler_.Chance(0.2)) spec->mutable_max_runtime()->set_seconds(scheduler_.Int(1, 30));
    if (scheduler_.Chance(0.5)) spec->set_priority(static_cast<int32_t>(scheduler_.Int(-2, 2)));
    scheduler_.After(scheduler_.Ms(0, 20000), [this, i] { Submit(i); });
    for (int updates = scheduler_.Chance(0.5) ? 3 : 0; updates > 0; --updates) {
      scheduler_.After(scheduler_.Ms(1000, 50000), [this, i] { Reprioritise(i); });
    }
    submission.cancel = scheduler_.Chance(0.2);
    if (submission.cancel) scheduler_.After(scheduler_.Ms(20000, 50000), [this, i] { Cancel(i); });
    for (int pauses = scheduler_.Chance(0.3) ? 2 : 0; pauses > 0; --pauses) {
      scheduler_.After(scheduler_.Ms(1000, 50000), [this, i] { Pause(i); });
    }
  }
  for (int i = 0; i < workers; ++i) {
    if (scheduler_.Chance(0.2)) Operate(absl::StrCat("workers/w", i), 2);
  }
}

// Again and again, with the same request id, until there is an answer.
void Simulation::Submit(size_t index) {
  const auto retry = [this, index] {
    scheduler_.After(scheduler_.Ms(200, 1000), [this, index] { Submit(index); });
  };
  if (core_ == nullptr) return retry();
  const uint64_t call = ++last_call_;
  calls_[call] = [this, index, retry](const coordinator::Reply* reply) {
    if (reply == nullptr || reply->response.status().code() == absl::StatusCode::kUnavailable) {
      return retry();
    }
    if (!reply->response.ok() && IsRefusedByQueue(submissions_[index].request.training_job().spec(),
                                                  reply->response.status())) {
      // Low enough for every queue.
      submissions_[index].request.mutable_training_job()->mutable_spec()->set_priority(-2);
      return retry();
    }
    if (!reply->response.ok()) {
      invariants_.Violated(absl::StrCat("create: ", reply->response.status().ToString()));
      return;
    }
    submissions_[index].name = std::get<v1::TrainingJob>(*reply->response).name();
    // The reply may be lost on the way to the user, who then asks again.
    if (scheduler_.Chance(0.2)) retry();
  };
  Handle(coordinator::ApiRequest{call, submissions_[index].request, std::nullopt});
}

template <typename Request>
void Simulation::Ask(size_t index, std::function<void()> done, Request request) {
  const auto retry = [this, index, done, request] {
    scheduler_.After(scheduler_.Ms(200, 1000),
                     [this, index, done, request] { Ask(index, done, request); });
  };
  if (core_ == nullptr || submissions_[index].name.empty()) return retry();
  SetName(submissions_[index].name, &request);
  const uint64_t call = ++last_call_;
  calls_[call] = [this, index, retry, done, request](const coordinator::Reply* reply) {
    if (reply == nullptr || reply->response.status().code() == absl::StatusCode::kUnavailable) {
      return retry();
    }
    const absl::Status status = reply->response.status();
    const v1::TrainingJob* job = core_->FindJob(submissions_[index].name);
    const bool ends = coordinator::IsTerminal(job->status().state()) ||
                      job->status().state() == v1::TrainingJobStatus::CANCELLING;
    v1::TrainingJobSpec asked = job->spec();
    asked.set_priority(PriorityIn(request, asked.priority()));
    if (!status.ok() && !IsRefusedByQueue(asked, status) &&
        !(ends && status.code() == absl::StatusCode::kFailedPrecondition)) {
      invariants_.Violated(absl::StrCat(Request::descriptor()->name(), ": ", status.ToString()));
    }
    done();
  };
  Handle(coordinator::ApiRequest{call, request, std::nullopt});
}

void Simulation::Cancel(size_t index) {
  Ask<v1::CancelTrainingJobRequest>(index, [] {});
}

void Simulation::Pause(size_t index) {
  ++injected_["pauses"];
  Ask<v1::PauseTrainingJobRequest>(index, [this, index] {
    // Sometimes before the ring has stopped.
    scheduler_.After(scheduler_.Ms(0, scheduler_.Chance(0.5) ? 300 : 15000),
                     [this, index] { Resume(index); });
  });
}

void Simulation::Resume(size_t index) {
  Ask<v1::ResumeTrainingJobRequest>(index, [] {});
}

void Simulation::Reprioritise(size_t index) {
  ++injected_["priorities"];
  v1::UpdateTrainingJobRequest request;
  request.mutable_update_mask()->add_paths("spec.priority");
  request.mutable_training_job()->mutable_spec()->set_priority(
      static_cast<int32_t>(scheduler_.Int(-2, 2)));
  Ask(
      index, [] {}, request);
}

template <typename Request>
void Simulation::AskOf(const std::string& worker,
                       std::function<void(const absl::StatusOr<v1::Worker>&)> done) {
  const auto retry = [this, worker, done] {
    scheduler_.After(scheduler_.Ms(200, 1000),
                     [this, worker, done] { AskOf<Request>(worker, done); });
  };
  if (core_ == nullptr) return retry();
  Request request;
  request.set_name(worker);
  const uint64_t call = ++last_call_;
  calls_[call] = [this, retry, done](const coordinator::Reply* reply) {
    if (reply == nullptr || reply->response.status().code() == absl::StatusCode::kUnavailable) {
      return retry();
    }
    const absl::Status status = reply->response.status();
    if (!status.ok()) return done(status);
    done(std::get<v1::Worker>(*reply->response));
  };
  Handle(coordinator::ApiRequest{call, request, std::nullopt});
}

void Simulation::Operate(const std::string& worker, int rounds) {
  if (rounds == 0) return;
  scheduler_.After(scheduler_.Ms(1000, 25000), [this, worker, rounds] {
    if (!faults_) return;
    const bool drain = scheduler_.Chance(0.6);
    const bool waits = drain && scheduler_.Chance(0.5);
    ++operated_;
    const auto done = [=, this](const absl::StatusOr<v1::Worker>& answer) {
      if (answer.status().code() == absl::StatusCode::kNotFound) {
        --operated_;
        return Operate(worker, rounds - 1);
      }
      ++injected_[drain ? "drained workers" : "cordons"];
      if (waits) return AwaitDrained(worker, rounds);
      scheduler_.After(scheduler_.Ms(0, 15000), [=, this] { Uncordon(worker, rounds); });
    };
    drain ? AskOf<v1::DrainWorkerRequest>(worker, done)
          : AskOf<v1::CordonWorkerRequest>(worker, done);
  });
}

void Simulation::AwaitDrained(const std::string& worker, int rounds) {
  AskOf<v1::GetWorkerRequest>(worker, [=, this](const absl::StatusOr<v1::Worker>& answer) {
    if (!answer.ok() || !answer->has_cordon()) {
      return invariants_.Violated(absl::StrCat(worker, ": its cordon is forgotten"));
    }
    if (answer->drained()) return Uncordon(worker, rounds);
    scheduler_.After(scheduler_.Ms(100, 1000), [=, this] { AwaitDrained(worker, rounds); });
  });
}

void Simulation::Uncordon(const std::string& worker, int rounds) {
  AskOf<v1::UncordonWorkerRequest>(worker, [=, this](const absl::StatusOr<v1::Worker>&) {
    // Asked again because the answer was lost, it may be that nobody knows the worker any more.
    const bool cordoned =
        store_.rows().count({static_cast<int>(coordinator::Table::kCordons), worker}) > 0;
    if (cordoned) invariants_.Violated(absl::StrCat(worker, ": its cordon stays"));
    --operated_;
    Operate(worker, rounds - 1);
  });
}

void Simulation::PlanFaults() {
  trainers_.SetFaults(scheduler_.Chance(0.3) ? 0.05 : 0, scheduler_.Chance(0.3) ? 0.05 : 0);
  // Most jobs have begun by then: without a step done, a misfit's fault is theirs.
  const double misfits = scheduler_.Chance(0.4) ? 0.4 : 0;
  scheduler_.After(scheduler_.Ms(3000, 15000), [this, misfits] { misfit_chance_ = misfits; });
  // From calm to furious.
  const int64_t pause_ms = int64_t{1} << scheduler_.Int(9, 14);
  const absl::Time quiet = scheduler_.now() + absl::Seconds(60);
  for (absl::Time at = scheduler_.now() + absl::Seconds(1); at < quiet;) {
    scheduler_.At(at, [this] { InjectFault(); });
    at += scheduler_.Ms(pause_ms / 4, pause_ms * 7 / 4);
  }
  scheduler_.At(quiet, [this] {
    faults_ = false;
    LiftQuotas();
    crash_after_commit_ = crash_before_commit_ = false;
    trainers_.SetFaults(0, 0);
    for (const auto& process : processes_) process->lack = Process::Lack::kNothing;
  });
}

void Simulation::MakeMisfit(Process& process) {
  ++injected_["misfits"];
  process.lack = static_cast<Process::Lack>(scheduler_.Int(1, 3));
  scheduler_.After(scheduler_.Ms(1000, 40000),
                   [&process] { process.lack = Process::Lack::kNothing; });
}

Process* Simulation::AnyProcess() {
  std::vector<Process*> alive;
  for (const auto& [name, process] : current_) {
    if (process->alive) alive.push_back(process);
  }
  if (alive.empty()) return nullptr;
  return alive[static_cast<size_t>(scheduler_.Int(0, static_cast<int64_t>(alive.size()) - 1))];
}

void Simulation::InjectFault() {
  if (!faults_) return;
  Process* process = AnyProcess();
  const int64_t kind = scheduler_.Int(0, 109);
  if (process != nullptr && kind < 3) {
    ++injected_["lost hosts"];
    LoseHost(*process);
  } else if (process != nullptr && kind < 35) {
    ++injected_["kills"];
    EndProcess(*process, 9, 0, scheduler_.Ms(50, scheduler_.Chance(0.1) ? 15000 : 700));
  } else if (process != nullptr && kind < 45) {
    ++injected_["stops"];
    process->stopped_until = scheduler_.now() + scheduler_.Ms(100, 12000);
    scheduler_.At(process->stopped_until, [process] {
      while (process->alive && !process->deferred.empty()) {
        const auto what = std::move(process->deferred.front());
        process->deferred.pop_front();
        what();
      }
    });
  } else if (process != nullptr && kind < 55) {
    ++injected_["exceptions"];
    process->throws = true;
  } else if (process != nullptr && kind < 70) {
    ++injected_["broken streams"];
    BreakStream(process->stream);
  } else if (process != nullptr && kind < 75) {
    ++injected_["drains"];
    Deliver(*process, worker::StopRequested{});
  } else if (kind < 80) {
    CrashCoordinator();
  } else if (kind < 88) {
    crash_after_commit_ = true;
  } else if (kind < 93) {
    crash_before_commit_ = true;
  } else if (kind < 103) {
    ++injected_["unreadable checkpoints"];
    trainers_.SetUnreadable(scheduler_.now() + scheduler_.Ms(500, 20000));
  } else if (!store_.full) {
    ++injected_["full disks"];
    store_.full = true;
    scheduler_.After(scheduler_.Ms(100, 5000), [this] {
      store_.full = false;
      if (core_ != nullptr) Take(core_->SetStoreFull(scheduler_.now(), false));
    });
  }
}

}  // namespace ringmaster::simulation
