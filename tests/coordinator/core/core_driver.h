#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

// Feeds a core by hand. Keeps the rows as a store would, and the directives of each stream until
// they are looked at.
class CoreDriver {
 public:
  explicit CoreDriver(CoreOptions options = Options()) : options_(std::move(options)) { Start(); }

  static CoreOptions Options() {
    CoreOptions options;
    options.shared_directory = "/shared";
    return options;
  }

  // A new life with what is stored; every stream is gone.
  void Start() {
    directives_.clear();
    core_ = *coordinator::Core::Create(options_, Stored(), ++epoch_, now_, 7);
  }
  StoredState Stored() const {
    StoredState stored;
    for (const auto& [key, value] : rows_) {
      stored.rows.push_back({static_cast<Table>(key.first), key.second, value});
    }
    return stored;
  }

  Output Do(const Event& event) { return Take(core_->Handle(now_, event)); }
  void Tick() { Take(core_->Tick(now_)); }
  // Lets time pass, time-outs on the way included; workers with streams keep their leases.
  void Advance(absl::Duration by, bool heartbeats = true) {
    const absl::Time end = now_ + by;
    while (now_ < end) {
      now_ = std::min(end, now_ + absl::Milliseconds(250));
      if (heartbeats) {
        for (const auto& [worker, stream] : streams_) Heartbeat(worker);
      }
      while (core_->NextTick() <= now_) Tick();
    }
  }

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const Request& request,
                                std::optional<absl::StatusOr<ManifestFile>> manifest = {}) {
    Output output = Do(ApiRequest{++calls_, request, std::move(manifest)});
    EXPECT_EQ(output.replies.size(), 1);
    if (!output.replies[0].response.ok()) return output.replies[0].response.status();
    return std::get<Response>(*output.replies[0].response);
  }

  static v1::TrainingJobSpec Spec(int ring = 2, int64_t steps = 10) {
    v1::TrainingJobSpec spec;
    spec.mutable_model()->set_preset("tiny");
    spec.mutable_data()->add_paths("/data/*.txt");
    spec.mutable_data()->set_sequence_length(8192);
    spec.mutable_parallel()->set_ring_size(ring);
    spec.set_steps(steps);
    return spec;
  }
  v1::CreateTrainingJobRequest CreateRequest(const std::string& id, int ring = 2) {
    v1::CreateTrainingJobRequest request;
    request.set_training_job_id(id);
    *request.mutable_training_job()->mutable_spec() = Spec(ring);
    return request;
  }
  std::string Create(const std::string& id, int ring = 2) {
    const auto job = Call<v1::TrainingJob>(CreateRequest(id, ring));
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? job->name() : "";
  }
  const v1::TrainingJob& Job(const std::string& id) {
    const v1::TrainingJob* job = core_->FindJob(absl::StrCat("projects/default/trainingJobs/", id));
    EXPECT_NE(job, nullptr) << id;
    return job == nullptr ? v1::TrainingJob::default_instance() : *job;
  }
  std::string StateOf(const std::string& id) {
    return v1::TrainingJobStatus::State_Name(Job(id).status().state());
  }

  static std::string Incarnation(char c) { return std::string(32, c); }
  static v1::Hardware Cpu(const std::string& host = "h0") {
    v1::Hardware hardware;
    hardware.set_device(v1::CPU);
    hardware.set_memory_bytes(int64_t{8} << 30);
    hardware.set_host(host);
    hardware.set_cpu_capability("avx2");
    hardware.set_threads(4);
    hardware.add_transports("ucx/1.13");
    return hardware;
  }

  // Attaches `worker` as process `incarnation`; the ring, if any, as it was before.
  void Hello(const std::string& worker, char incarnation, v1::Phase phase = v1::PHASE_IDLE,
             const v1::RingRef& ring = {}, const v1::HeldState& held = {}) {
    Hello(worker, incarnation, Cpu(), phase, ring, held);
  }
  void Hello(const std::string& worker, char incarnation, const v1::Hardware& hardware,
             v1::Phase phase = v1::PHASE_IDLE, const v1::RingRef& ring = {},
             const v1::HeldState& held = {}) {
    incarnations_[worker] = Incarnation(incarnation);
    streams_[worker] = ++stream_;
    v1::WorkerReport report;
    report.mutable_hello()->set_worker(absl::StrCat("workers/", worker));
    *report.mutable_hello()->mutable_hardware() = hardware;
    report.mutable_hello()->set_phase(phase);
    if (!ring.training_job_uid().empty()) {
      *report.mutable_hello()->mutable_ring() = ring;
      *report.mutable_hello()->mutable_state() = held;
    }
    Report(worker, report);
  }
  void Report(const std::string& worker, v1::WorkerReport report) {
    report.set_incarnation(incarnations_[worker]);
    report.set_epoch(epoch_);
    Do(WorkerReported{streams_.at(worker), report});
  }
  void Heartbeat(const std::string& worker) {
    v1::WorkerReport report;
    report.mutable_heartbeat()->set_sequence(++heartbeats_);
    Report(worker, report);
  }
  void Break(const std::string& worker) {
    const uint64_t stream = streams_.at(worker);
    streams_.erase(worker);
    Do(StreamClosed{stream});
  }
  void Exit(const std::string& worker, int signal, absl::Duration age = absl::Milliseconds(30)) {
    v1::ReportFaultRequest request;
    request.set_worker(absl::StrCat("workers/", worker));
    request.set_incarnation(incarnations_[worker]);
    request.set_signal(signal);
    request.mutable_age()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(age)));
    streams_.erase(worker);
    Do(WorkerExited{++calls_, request});
  }

  v1::RingRef Ring(const std::string& id, int rank) {
    v1::RingRef ring;
    ring.set_training_job(Job(id).name());
    ring.set_training_job_uid(Job(id).uid());
    ring.set_generation(Job(id).status().generation());
    ring.set_rank(rank);
    return ring;
  }
  static v1::HeldState Held(int64_t step, uint64_t digest = 7, bool clean = true) {
    v1::HeldState held;
    held.set_present(true);
    held.set_step(step);
    held.set_clean(clean);
    held.set_digest(digest);
    return held;
  }
  // By rank of the current generation: the worker's short name.
  std::string WorkerAt(const std::string& id, int rank) {
    return Job(id).status().ranks(rank).worker().substr(8);
  }

  void Join(const std::string& id, int rank, const v1::HeldState& held = {}) {
    v1::WorkerReport report;
    *report.mutable_ring_join()->mutable_ring() = Ring(id, rank);
    report.mutable_ring_join()->set_transport_address(absl::StrCat("address", rank));
    *report.mutable_ring_join()->mutable_state() = held;
    Report(WorkerAt(id, rank), report);
  }
  void Ready(const std::string& id, int rank, const v1::HeldState& held = Held(0)) {
    v1::WorkerReport report;
    *report.mutable_ring_ready()->mutable_ring() = Ring(id, rank);
    *report.mutable_ring_ready()->mutable_state() = held;
    report.mutable_ring_ready()->set_restore_ms(5);
    Report(WorkerAt(id, rank), report);
  }
  void Aborted(const std::string& id, int rank, const v1::HeldState& held = {}) {
    v1::WorkerReport report;
    *report.mutable_ring_aborted()->mutable_ring() = Ring(id, rank);
    *report.mutable_ring_aborted()->mutable_state() = held;
    Report(WorkerAt(id, rank), report);
  }
  void Step(const std::string& id, int64_t step) {
    v1::WorkerReport report;
    *report.mutable_steps_done()->mutable_ring() = Ring(id, 0);
    v1::StepRecord* record = report.mutable_steps_done()->add_records();
    record->set_step(step);
    record->set_loss(5.0 / static_cast<double>(step));
    record->set_seconds(0.1);
    Report(WorkerAt(id, 0), report);
  }
  std::string ShardPath(const std::string& id, int64_t step, int rank) {
    return absl::StrCat(Job(id).spec().directory(), "/checkpoints/step-", step, "/shard-", rank,
                        "-g", Job(id).status().generation());
  }
  void Shard(const std::string& id, int rank, int64_t step, const std::string& error = "") {
    v1::WorkerReport report;
    v1::ShardWritten* written = report.mutable_shard_written();
    *written->mutable_ring() = Ring(id, rank);
    written->set_step(step);
    written->set_error(error);
    if (error.empty()) written->mutable_shard()->set_path(ShardPath(id, step, rank));
    written->mutable_shard()->set_bytes(100);
    Report(WorkerAt(id, rank), report);
  }
  void Finish(const std::string& id, int rank, const std::string& error = "") {
    v1::WorkerReport report;
    *report.mutable_ring_finished()->mutable_ring() = Ring(id, rank);
    report.mutable_ring_finished()->set_checkpoint_error(error);
    Report(WorkerAt(id, rank), report);
  }
  void Fail(const std::string& id, int rank, v1::Fault::Kind kind, bool deterministic = false) {
    v1::WorkerReport report;
    *report.mutable_fault()->mutable_ring() = Ring(id, rank);
    report.mutable_fault()->set_kind(kind);
    report.mutable_fault()->set_message("boom");
    report.mutable_fault()->set_deterministic(deterministic);
    Report(WorkerAt(id, rank), report);
  }

  // From FormRing to StartSteps, every rank holding `held` before.
  void Form(const std::string& id, const v1::HeldState& held = {}) {
    const int world = Job(id).status().ranks_size();
    for (int rank = 0; rank < world; ++rank) Join(id, rank, held);
    for (int rank = 0; rank < world; ++rank) {
      Ready(id, rank, held.present() ? held : Held(0));
    }
  }
  // A job of two workers, a and b, that steps.
  void RunningPair(const std::string& id = "job-a") {
    Hello("a", 'a');
    Hello("b", 'b');
    Create(id);
    Form(id);
    EXPECT_EQ(StateOf(id), "RUNNING");
  }

  // The words of the directives that `worker`'s stream got since the last look: "Welcome FormRing".
  // HeartbeatAcks are left out.
  std::string Heard(const std::string& worker) {
    std::string words;
    for (const auto& directive : std::exchange(directives_[streams_.at(worker)], {})) {
      last_[worker][directive.directive_case()] = directive;
      if (directive.has_heartbeat_ack()) continue;
      const auto* field =
          v1::Directive::descriptor()->FindFieldByNumber(directive.directive_case());
      absl::StrAppend(&words, words.empty() ? "" : " ", field->message_type()->name());
    }
    return words;
  }
  // The newest directive of a kind among those heard.
  const v1::Directive& Last(const std::string& worker, v1::Directive::DirectiveCase kind) {
    return last_[worker][kind];
  }

  coordinator::Core& Core() { return *core_; }
  void Sleep(absl::Duration by) { now_ += by; }
  absl::Time now() const { return now_; }
  uint64_t stream(const std::string& worker) { return streams_.at(worker); }
  const std::map<std::pair<int, std::string>, std::string>& rows() const { return rows_; }
  const Output& last() const { return output_; }
  void DropStreams() { streams_.clear(); }

 private:
  Output Take(Output output) {
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

  CoreOptions options_;
  std::unique_ptr<coordinator::Core> core_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  int64_t epoch_ = 0;
  uint64_t calls_ = 0;
  uint64_t stream_ = 0;
  int64_t heartbeats_ = 0;
  std::map<std::pair<int, std::string>, std::string> rows_;
  std::map<std::string, uint64_t> streams_;
  std::map<std::string, std::string> incarnations_;
  std::map<uint64_t, std::vector<v1::Directive>> directives_;
  std::map<std::string, std::map<int, v1::Directive>> last_;
  Output output_;
};

}  // namespace ringmaster::coordinator
