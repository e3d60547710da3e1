#include "tests/coordinator/core/core_driver.h"

#include <gmock/gmock.h>

#include <algorithm>

namespace ringmaster::coordinator {

CoreOptions CoreDriver::Options() {
  CoreOptions options;
  options.shared_directory = "/shared";
  options.preemption = true;
  options.preemption_min_runtime = absl::ZeroDuration();
  return options;
}

void CoreDriver::Start() {
  streams_.clear();
  directives_.clear();
  core_ = *coordinator::Core::Create(options_, Stored(), ++epoch_, now_, 7);
}

void CoreDriver::Restart(v1::Phase phase, const v1::HeldState& held,
                         const std::vector<int>& ranks) {
  // The first to attach may change the ring.
  std::vector<std::pair<std::string, v1::RingRef>> members;
  for (const int rank : ranks) members.emplace_back(WorkerAt("job-a", rank), Ring("job-a", rank));
  Start();
  for (const auto& [worker, ring] : members) {
    Hello(worker, incarnations_[worker][0], phase, ring, held);
  }
}

StoredState CoreDriver::Stored() const {
  StoredState stored;
  for (const auto& [key, value] : rows_) {
    stored.rows.push_back({static_cast<Table>(key.first), key.second, value});
  }
  return stored;
}

void CoreDriver::Advance(absl::Duration by, bool heartbeats) {
  const absl::Time end = now_ + by;
  while (now_ < end) {
    now_ = std::min(end, now_ + absl::Milliseconds(250));
    if (heartbeats) {
      for (const auto& [worker, stream] : streams_) Heartbeat(worker);
    }
    while (core_->NextTick() <= now_) Tick();
  }
}

std::string CoreDriver::Create(const std::string& id, int ring) {
  const auto job = Call<v1::TrainingJob>(CreateRequest(id, ring));
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? job->name() : "";
}

const v1::TrainingJob& CoreDriver::Job(const std::string& id) {
  const v1::TrainingJob* job = core_->FindJob(absl::StrCat("projects/default/trainingJobs/", id));
  EXPECT_NE(job, nullptr) << id;
  return job == nullptr ? v1::TrainingJob::default_instance() : *job;
}

std::string CoreDriver::StateOf(const std::string& id) {
  return v1::TrainingJobStatus::State_Name(Job(id).status().state());
}

v1::Hardware CoreDriver::Cpu(const std::string& host) {
  v1::Hardware hardware;
  hardware.set_device(v1::CPU);
  hardware.set_memory_bytes(int64_t{8} << 30);
  hardware.set_host(host);
  hardware.set_cpu_capability("avx2");
  hardware.set_threads(4);
  hardware.add_transports("ucx/1.13");
  return hardware;
}

void CoreDriver::Hello(const std::string& worker, char incarnation, v1::Phase phase,
                       const v1::RingRef& ring, const v1::HeldState& held) {
  Hello(worker, incarnation, Cpu(), phase, ring, held);
}

void CoreDriver::Hello(const std::string& worker, char incarnation, const v1::Hardware& hardware,
                       v1::Phase phase, const v1::RingRef& ring, const v1::HeldState& held) {
  incarnations_[worker] = Incarnation(incarnation);
  streams_[worker] = ++stream_;
  v1::WorkerReport report;
  report.mutable_hello()->set_worker(absl::StrCat("workers/", worker));
  *report.mutable_hello()->mutable_hardware() = hardware;
  report.mutable_hello()->set_version(version_);
  report.mutable_hello()->set_supervisor(supervisor_);
  report.mutable_hello()->set_phase(phase);
  if (!ring.training_job_uid().empty()) {
    *report.mutable_hello()->mutable_ring() = ring;
    *report.mutable_hello()->mutable_state() = held;
  }
  Report(worker, report);
}

void CoreDriver::ExpectTaken(const std::string& worker, char incarnation, const std::string& why) {
  Hello(worker, incarnation);
  EXPECT_EQ(Heard(worker), "");
  ASSERT_EQ(output_.directives.size(), 1);
  const DirectiveTo& told = output_.directives[0];
  EXPECT_TRUE(told.close);
  EXPECT_EQ(told.close_status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Details(told.close_status).reason, "WORKER_NAME_TAKEN");
  EXPECT_THAT(std::string(told.close_status.message()), testing::HasSubstr(why));
  Break(worker);
}

void CoreDriver::Report(const std::string& worker, v1::WorkerReport report) {
  report.set_incarnation(incarnations_[worker]);
  // Of no epoch in the process's first words.
  report.set_epoch(began_.insert(report.incarnation()).second ? 0 : epoch_);
  Do(WorkerReported{streams_.at(worker), report});
}

void CoreDriver::Heartbeat(const std::string& worker) {
  v1::WorkerReport report;
  report.mutable_heartbeat()->set_sequence(++heartbeats_);
  Report(worker, report);
}

void CoreDriver::Break(const std::string& worker) {
  const uint64_t stream = streams_.at(worker);
  streams_.erase(worker);
  Do(StreamClosed{stream});
}

void CoreDriver::Exit(const std::string& worker, int signal, absl::Duration age) {
  v1::ReportFaultRequest request;
  request.set_worker(absl::StrCat("workers/", worker));
  request.set_incarnation(incarnations_[worker]);
  request.set_signal(signal);
  request.mutable_age()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(age)));
  streams_.erase(worker);
  Do(WorkerExited{++calls_, request});
}

v1::RingRef CoreDriver::Ring(const std::string& id, int rank) {
  v1::RingRef ring;
  ring.set_training_job(Job(id).name());
  ring.set_training_job_uid(Job(id).uid());
  ring.set_generation(Job(id).status().generation());
  ring.set_rank(rank);
  return ring;
}

std::string CoreDriver::WorkerAt(const std::string& id, int rank) {
  return Job(id).status().ranks(rank).worker().substr(8);
}

void CoreDriver::Join(const std::string& id, int rank, const v1::HeldState& held) {
  v1::WorkerReport report;
  *report.mutable_ring_join()->mutable_ring() = Ring(id, rank);
  report.mutable_ring_join()->set_transport_address(absl::StrCat("address", rank));
  *report.mutable_ring_join()->mutable_state() = held;
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::Ready(const std::string& id, int rank, const v1::HeldState& held) {
  v1::WorkerReport report;
  *report.mutable_ring_ready()->mutable_ring() = Ring(id, rank);
  *report.mutable_ring_ready()->mutable_state() = held;
  report.mutable_ring_ready()->set_restore_ms(5);
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::Aborted(const std::string& id, int rank, const v1::HeldState& held) {
  v1::WorkerReport report;
  *report.mutable_ring_aborted()->mutable_ring() = Ring(id, rank);
  *report.mutable_ring_aborted()->mutable_state() = held;
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::Step(const std::string& id, int64_t step) {
  v1::WorkerReport report;
  *report.mutable_steps_done()->mutable_ring() = Ring(id, 0);
  v1::StepRecord* record = report.mutable_steps_done()->add_records();
  record->set_step(step);
  record->set_loss(5.0 / static_cast<double>(step));
  record->set_seconds(0.1);
  Report(WorkerAt(id, 0), report);
}

std::string CoreDriver::ShardPath(const std::string& id, int64_t step, int rank) {
  return absl::StrCat(Job(id).spec().directory(), "/checkpoints/step-", step, "/shard-", rank, "-g",
                      Job(id).status().generation());
}

void CoreDriver::Shard(const std::string& id, int rank, int64_t step, const std::string& error) {
  v1::WorkerReport report;
  v1::ShardWritten* written = report.mutable_shard_written();
  *written->mutable_ring() = Ring(id, rank);
  written->set_step(step);
  written->set_error(error);
  if (error.empty()) written->mutable_shard()->set_path(ShardPath(id, step, rank));
  written->mutable_shard()->set_bytes(100);
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::Checkpoint(const std::string& id, int64_t step) {
  for (int rank = 0; rank < Job(id).status().ranks_size(); ++rank) Shard(id, rank, step);
}

void CoreDriver::Finish(const std::string& id, int rank, const std::string& error) {
  FinishAt(id, rank, Job(id).spec().steps(), error);
}

void CoreDriver::FinishAt(const std::string& id, int rank, int64_t step, const std::string& error) {
  v1::WorkerReport report;
  *report.mutable_ring_finished()->mutable_state() = Held(step);
  *report.mutable_ring_finished()->mutable_ring() = Ring(id, rank);
  report.mutable_ring_finished()->set_checkpoint_error(error);
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::FinishRing(const std::string& id, int64_t step, const std::string& error) {
  const int ranks = Job(id).status().ranks_size();
  const auto error_of = [&](int rank) { return rank == ranks - 1 ? error : ""; };
  Step(id, step);
  for (int rank = 0; rank < ranks; ++rank) Shard(id, rank, step, error_of(rank));
  for (int rank = 0; rank < ranks; ++rank) FinishAt(id, rank, step, error_of(rank));
}

void CoreDriver::Fail(const std::string& id, int rank, v1::Fault::Kind kind, bool deterministic,
                      const std::vector<int>& accused) {
  v1::WorkerReport report;
  *report.mutable_fault()->mutable_ring() = Ring(id, rank);
  report.mutable_fault()->set_kind(kind);
  report.mutable_fault()->set_message("boom");
  report.mutable_fault()->set_deterministic(deterministic);
  report.mutable_fault()->mutable_accused_ranks()->Add(accused.begin(), accused.end());
  Report(WorkerAt(id, rank), report);
}

void CoreDriver::Form(const std::string& id, const v1::HeldState& held) {
  const int world = Job(id).status().ranks_size();
  for (int rank = 0; rank < world; ++rank) Join(id, rank, held);
  for (int rank = 0; rank < world; ++rank) {
    Ready(id, rank, held.present() ? held : Held(0));
  }
}

void CoreDriver::FormingPair(const Edit& edit) {
  Hello("a", 'a');
  Hello("b", 'b');
  v1::CreateTrainingJobRequest request = CreateRequest("job-a");
  edit(*request.mutable_training_job()->mutable_spec());
  EXPECT_EQ(Call<v1::TrainingJob>(request).status(), absl::OkStatus());
}

void CoreDriver::RunningPair(const Edit& edit) {
  FormingPair(edit);
  Form("job-a");
  EXPECT_EQ(StateOf("job-a"), "RUNNING");
}

absl::Duration CoreDriver::AwaitRetry() {
  const absl::Time begin = now_;
  // No pause is longer than 30 s.
  for (int i = 0; i < 200 && Job("job-a").status().has_pending_reason(); ++i) {
    EXPECT_EQ(Job("job-a").status().pending_reason().code(), "PAUSE_BEFORE_RETRY");
    Advance(absl::Milliseconds(250));
  }
  EXPECT_FALSE(Job("job-a").status().has_pending_reason());
  return now_ - begin;
}

std::string CoreDriver::Heard(const std::string& worker) {
  std::string words;
  for (const auto& directive : std::exchange(directives_[streams_.at(worker)], {})) {
    last_[worker][directive.directive_case()] = directive;
    if (directive.has_heartbeat_ack()) continue;
    const auto* field = v1::Directive::descriptor()->FindFieldByNumber(directive.directive_case());
    absl::StrAppend(&words, words.empty() ? "" : " ", field->message_type()->name());
  }
  return words;
}

const v1::Directive& CoreDriver::Last(const std::string& worker,
                                      v1::Directive::DirectiveCase kind) {
  return last_[worker][kind];
}

Output CoreDriver::Take(Output output) {
  for (const RowChange& row : output.rows) {
    const std::pair key(static_cast<int>(row.table), row.key);
    if (row.value.has_value()) {
      rows_[key] = *row.value;
    } else {
      rows_.erase(key);
    }
  }
  for (const DirectiveTo& to : output.directives) {
    if (to.directive.has_value()) directives_[to.stream].push_back(*to.directive);
  }
  output_ = output;
  return output;
}

}  // namespace ringmaster::coordinator
