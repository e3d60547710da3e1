#include "tests/simulation/simulation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/lifecycle.h"

namespace ringmaster::simulation {
namespace {

// What one commit takes at most: so long what comes in waits for the next.
constexpr int kCommitMs = 20;
constexpr absl::Duration kFaultPhase = absl::Seconds(60);
// A rejoin timeout, a lease, an adoption window, the minutes for which a job passes over a worker
// that failed it, and the steps themselves fit several times.
constexpr absl::Duration kQuietPhase = absl::Seconds(1200);

}  // namespace

Simulation::Simulation(uint64_t seed)
    : scheduler_(seed),
      trainers_(&scheduler_, &invariants_, &store_.rows(),
                [this](Process& process, const worker::Event& event) { Deliver(process, event); }),
      seed_(seed) {}

// ---- coordinator

void Simulation::StartCoordinator() {
  coordinator::CoreOptions options;
  options.shared_directory = "/shared";
  options.preemption = seed_ % 4 != 0;
  options.preemption_min_runtime = absl::Seconds(seed_ % 3 * 4);
  invariants_.ConfigurePreemption(options.preemption, options.preemption_min_runtime);
  invariants_.NewLife();
  core_ = *coordinator::Core::Create(options, store_.Load(), ++epoch_, scheduler_.now(), seed_);
  tick_planned_ = absl::InfiniteFuture();
  PlanTick();
}

void Simulation::CrashCoordinator() {
  if (core_ == nullptr) return;
  ++injected_["coordinator crashes"];
  core_.reset();
  arrived_.clear();
  std::vector<uint64_t> ids;
  for (const auto& [id, stream] : streams_) ids.push_back(id);
  for (const uint64_t id : ids) BreakStream(id);
  for (auto& [call, done] : std::exchange(calls_, {})) done(nullptr);
  scheduler_.After(scheduler_.Ms(20, scheduler_.Chance(0.2) ? 15000 : 1000),
                   [this] { StartCoordinator(); });
}

void Simulation::Handle(const coordinator::Event& event) {
  if (core_ == nullptr) return;
  arrived_.push_back(event);
  const bool commits_at_once = seed_ % 8 < 3;
  if (commits_at_once) return HandleArrived();
  if (arrived_.size() > 1) return;
  const int64_t epoch = epoch_;
  scheduler_.After(scheduler_.Ms(0, kCommitMs), [this, epoch] {
    if (epoch == epoch_) HandleArrived();
  });
}

void Simulation::HandleArrived() {
  if (core_ == nullptr || arrived_.empty()) return;
  const std::vector<coordinator::Event> events = std::exchange(arrived_, {});
  std::vector<const coordinator::Event*> all;
  for (const coordinator::Event& event : events) all.push_back(&event);
  Take(core_->Handle(scheduler_.now(), all));
}

void Simulation::Take(coordinator::Output output) {
  const bool has_rows = !output.rows.empty();
  if (has_rows && std::exchange(crash_before_commit_, false)) return CrashCoordinator();
  if (!Commit(output)) return;
  if (has_rows && std::exchange(crash_after_commit_, false)) return CrashCoordinator();
  Release(std::move(output));
  PlanTick();
}

bool Simulation::Commit(const coordinator::Output& output) {
  if (store_.full && !output.rows.empty() && scheduler_.Chance(0.5)) {
    ++injected_["failed commits"];
    for (const coordinator::Reply& reply : output.replies) {
      const auto call = calls_.find(reply.call);
      if (call == calls_.end()) continue;
      const auto done = std::move(call->second);
      calls_.erase(call);
      done(nullptr);
    }
    invariants_.NewLife();
    auto reloaded = core_->Reload(scheduler_.now(), store_.Load());
    if (!reloaded->rows.empty()) invariants_.Violated("a reload made rows");
    Release(*std::move(reloaded));
    PlanTick();
    return false;
  }
  store_.Commit(output.rows);
  invariants_.CheckCommit(*core_, store_.rows(), output.rows,
                          {[this](const std::string& path) { return trainers_.FileExists(path); },
                           [this](const std::string& uid, int64_t generation) {
                             return trainers_.AgreedStep(uid, generation);
                           }});
  invariants_.CheckMemory(*core_, store_.rows());
  return true;
}

void Simulation::Release(coordinator::Output output) {
  for (const coordinator::Reply& reply : output.replies) {
    const auto call = calls_.find(reply.call);
    if (call == calls_.end()) continue;
    const auto done = std::move(call->second);
    calls_.erase(call);
    done(&reply);
  }
  for (const coordinator::DirectiveTo& to : output.directives) {
    if (to.directive.has_value()) {
      invariants_.CheckTold(*to.directive, store_.rows());
      SendToWorker(to.stream, *to.directive);
    }
    if (to.close) {
      const auto found = streams_.find(to.stream);
      if (found == streams_.end()) continue;
      const uint64_t id = to.stream;
      scheduler_.At(found->second.to_worker + absl::Milliseconds(1),
                    [this, id] { BreakStream(id); });
    }
  }
}

void Simulation::PlanTick() {
  if (core_ == nullptr) return;
  const absl::Time next = core_->NextTick();
  if (next >= tick_planned_) return;
  tick_planned_ = next;
  const int64_t epoch = epoch_;
  scheduler_.At(next, [this, epoch, next] {
    if (core_ == nullptr || epoch != epoch_ || tick_planned_ != next) return;
    tick_planned_ = absl::InfiniteFuture();
    HandleArrived();
    if (core_ != nullptr && epoch == epoch_) Take(core_->Tick(scheduler_.now()));
    PlanTick();
  });
}

// ---- workers

void Simulation::StartProcess(const std::string& name, const std::string& supervisor) {
  auto process = std::make_unique<Process>();
  process->name = name;
  process->incarnation = absl::StrFormat("%016x%016x", scheduler_.Bits(), scheduler_.Bits());
  // The first child has its supervisor's id.
  process->supervisor = supervisor.empty() ? process->incarnation : supervisor;
  worker::SessionIdentity identity{
      .worker = name, .incarnation = process->incarnation, .supervisor = process->supervisor};
  identity.hardware.set_device(v1::CPU);
  identity.hardware.set_host(absl::StrCat("host", name.back() % 2));
  identity.hardware.set_cpu_capability("avx2");
  identity.hardware.set_threads(2);
  identity.hardware.add_transports("ucx/1.13");
  process->core = std::make_unique<worker::SessionCore>(identity);
  if (faults_ && scheduler_.Chance(misfit_chance_)) MakeMisfit(*process);
  current_[name] = process.get();
  processes_.push_back(std::move(process));
  Connect(*processes_.back());
}

void Simulation::Deliver(Process& process, const worker::Event& event) {
  trainers_.In(process, [this, &process, event] {
    for (const worker::Action& action : process.core->Handle(scheduler_.now(), event)) {
      if (!process.alive) return;
      Act(process, action);
    }
    PlanTimer(process);
  });
}

void Simulation::Act(Process& process, const worker::Action& action) {
  struct Visitor {
    Simulation& s;
    Process& p;
    void operator()(const worker::SendReport& a) { s.SendToCoordinator(p.stream, a.report); }
    void operator()(const worker::OpenTransport& a) { s.trainers_.Open(p, a.form); }
    void operator()(const worker::ConnectAndRestore& a) { s.trainers_.Connect(p, a.connect); }
    void operator()(const worker::RunSteps&) { s.trainers_.Run(p); }
    void operator()(const worker::AbandonRing&) { s.trainers_.Abandon(p); }
    void operator()(const worker::StopAfterStep&) { s.trainers_.StopAfterStep(p); }
    void operator()(const worker::FinishAfterStep&) { s.trainers_.FinishAfterStep(p); }
    void operator()(const worker::DropState& a) { s.trainers_.Drop(p, a.training_job_uid); }
    void operator()(const worker::WriteManifest&) {}
    void operator()(const worker::DeletePaths& a) { s.trainers_.Delete(p, a.files); }
    void operator()(const worker::SetPublishing&) {}
    void operator()(const worker::ExitProcess& a) {
      s.EndProcess(p, 0, a.code, s.scheduler_.Ms(50, a.code == 0 ? 5000 : 500));
    }
  };
  std::visit(Visitor{*this, process}, action);
}

void Simulation::PlanTimer(Process& process) {
  const absl::Time next = process.core->NextTimer();
  if (!process.alive || next == absl::InfiniteFuture() || process.timer == next) return;
  process.timer = next;
  scheduler_.At(next, [this, &process, next] {
    if (process.timer != next) return;
    process.timer = absl::InfiniteFuture();
    Deliver(process, worker::TimerTick{});
  });
}

void Simulation::Connect(Process& process) {
  scheduler_.After(scheduler_.Ms(5, 100), [this, &process] {
    if (!process.alive || process.stream != 0) return;
    if (core_ == nullptr || scheduler_.now() < process.stopped_until) return Connect(process);
    const uint64_t id = ++last_stream_;
    streams_[id] = {&process, true, scheduler_.now(), scheduler_.now()};
    process.stream = id;
    Deliver(process, worker::StreamUp{});
  });
}

void Simulation::BreakStream(uint64_t id) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  Process& process = *found->second.process;
  streams_.erase(found);
  scheduler_.After(scheduler_.Ms(0, 50), [this, id] { Handle(coordinator::StreamClosed{id}); });
  scheduler_.After(scheduler_.Ms(0, 50), [this, &process, id] {
    trainers_.In(process, [this, &process, id] {
      if (process.stream != id) return;
      process.stream = 0;
      Deliver(process, worker::StreamDown{});
      Connect(process);
    });
  });
}

void Simulation::EndProcess(Process& process, int signal, int exit_code, absl::Duration restart) {
  if (!process.alive) return;
  process.alive = false;
  trainers_.Lost(process);
  const uint64_t id = std::exchange(process.stream, 0);
  const auto stream = streams_.find(id);
  // A Goodbye is still flushed.
  if (stream != streams_.end()) {
    const absl::Time flushed = signal == 0 ? stream->second.to_coordinator : scheduler_.now();
    scheduler_.At(flushed + absl::Microseconds(1), [this, id] { BreakStream(id); });
  }
  // A machine that goes takes its supervisor along.
  const bool supervised = scheduler_.Chance(0.8);
  if (supervised) ReportExit(process, signal, exit_code, scheduler_.now(), 0);
  const std::string name = process.name;
  const std::string supervisor = supervised ? process.supervisor : "";
  scheduler_.After(restart, [this, name, supervisor] { StartProcess(name, supervisor); });
}

// The whole machine goes without a word: the stream looks alive, only the lease tells.
void Simulation::LoseHost(Process& process) {
  process.alive = false;
  trainers_.Lost(process);
  current_.erase(process.name);
  const std::string replacement = absl::StrCat(process.name, "x");
  scheduler_.After(scheduler_.Ms(500, 10000), [this, replacement] { StartProcess(replacement); });
}

void Simulation::ReportExit(const Process& process, int signal, int exit_code, absl::Time ended,
                            int tries) {
  scheduler_.After(scheduler_.Ms(5, 60), [this, &process, signal, exit_code, ended, tries] {
    if (core_ == nullptr) {
      if (tries < 50) ReportExit(process, signal, exit_code, ended, tries + 1);
      return;
    }
    v1::ReportFaultRequest request;
    request.set_worker(process.name);
    request.set_incarnation(process.incarnation);
    if (signal != 0) {
      request.set_signal(signal);
    } else {
      request.set_exit_code(exit_code);
    }
    request.mutable_age()->set_nanos(static_cast<int32_t>(
        std::min<int64_t>(absl::ToInt64Nanoseconds(scheduler_.now() - ended), 999'999'999)));
    Handle(coordinator::WorkerExited{++last_call_, request});
  });
}

// ---- streams

void Simulation::SendToCoordinator(uint64_t id, const v1::WorkerReport& report) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  absl::Time& last = found->second.to_coordinator;
  last = std::max(last, scheduler_.now()) + scheduler_.Ms(0, 8);
  scheduler_.At(last, [this, id, report] {
    if (streams_.count(id) > 0) Handle(coordinator::WorkerReported{id, report});
  });
}

void Simulation::SendToWorker(uint64_t id, const v1::Directive& directive) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  absl::Time& last = found->second.to_worker;
  last = std::max(last, scheduler_.now()) + scheduler_.Ms(0, 8);
  Process& process = *found->second.process;
  scheduler_.At(last, [this, id, &process, directive] {
    if (streams_.count(id) == 0) return;
    trainers_.In(process, [this, id, &process, directive] {
      if (process.stream == id) Deliver(process, worker::DirectiveArrived{directive});
    });
  });
}

// ---- the run

bool Simulation::AllEnded() const {
  if (core_ == nullptr || operated_ > 0) return false;
  for (const Submission& submission : submissions_) {
    const v1::TrainingJob* job = core_->FindJob(submission.name);
    if (job == nullptr) return false;
    const bool waits = !submission.satisfiable && !submission.cancel &&
                       job->status().state() == v1::TrainingJobStatus::QUEUED;
    if (!coordinator::IsTerminal(job->status().state()) && !waits) return false;
  }
  return true;
}

std::vector<std::string> Simulation::Run() {
  StartCoordinator();
  PlanUsers();
  PlanAdministrators();
  PlanFaults();
  const absl::Time quiet = scheduler_.now() + kFaultPhase;
  const absl::Time end = quiet + kQuietPhase;
  while (invariants_.violations().empty() && scheduler_.RunNext(end)) {
    if (scheduler_.now() > quiet && AllEnded()) break;
  }
  if (invariants_.violations().empty() && !AllEnded()) {
    for (const Submission& submission : submissions_) {
      const v1::TrainingJob* job = core_ == nullptr ? nullptr : core_->FindJob(submission.name);
      if (job != nullptr && coordinator::IsTerminal(job->status().state())) continue;
      invariants_.Violated(absl::StrCat("a job did not end: '", submission.name, "' ",
                                        job == nullptr ? "" : job->status().ShortDebugString()));
    }
    if (operated_ > 0) invariants_.Violated("a worker that is drained did not become free");
  }
  std::map<std::string, int> jobs_of;
  if (core_ == nullptr) return invariants_.violations();
  for (const v1::TrainingJob* job : core_->Jobs("projects/-")) {
    if (++jobs_of[job->labels().at("submission")] > 1) {
      invariants_.Violated(absl::StrCat("one request_id made two jobs: ", job->name()));
    }
  }
  return invariants_.violations();
}

std::string Simulation::Summary() const {
  std::string text = absl::StrFormat("%d steps agreed", trainers_.steps_agreed());
  for (const auto& [what, count] : injected_) absl::StrAppend(&text, ", ", count, " ", what);
  absl::StrAppend(&text, ", ", invariants_.preemptions(), " preemptions");
  if (core_ == nullptr) return text;
  for (const v1::TrainingJob* job : core_->Jobs("projects/-")) {
    absl::StrAppendFormat(&text, "; %s gen %d episodes %d",
                          v1::TrainingJobStatus::State_Name(job->status().state()),
                          job->status().generation(), job->status().episodes_count());
    if (job->status().state() == v1::TrainingJobStatus::FAILED) {
      absl::StrAppend(&text, " (", job->status().state_reason(), ")");
    }
  }
  return text;
}

}  // namespace ringmaster::simulation
