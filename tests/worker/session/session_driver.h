#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "worker/session/session_core.h"

namespace ringmaster::worker {

// Feeds a session core by hand and writes what comes out as words: "Hello", "OpenTransport",
// "Exit(85)"...
class SessionDriver {
 public:
  static constexpr char kUid[] = "uid-a";

  explicit SessionDriver(int rank = 0) : rank_(rank), core_(Identity()) {}

  static SessionIdentity Identity() {
    return {.worker = "workers/w0", .incarnation = std::string(32, 'a'), .version = "test"};
  }

  v1::RingRef Ring(int64_t generation, const std::string& uid = kUid) const {
    v1::RingRef ring;
    ring.set_training_job("projects/p/trainingJobs/" + uid);
    ring.set_training_job_uid(uid);
    ring.set_generation(generation);
    ring.set_rank(rank_);
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

  // The words of the actions, separated by blanks.
  std::string Do(const Event& event) {
    last_ = core_.Handle(now_, event);
    return absl::StrJoin(last_, " ",
                         [](std::string* out, const Action& action) { *out += Word(action); });
  }
  std::string Direct(const v1::Directive& directive) { return Do(DirectiveArrived{directive}); }

  v1::Directive New() const {
    v1::Directive directive;
    directive.set_epoch(epoch_);
    return directive;
  }
  v1::Directive Welcome() const {
    v1::Directive directive = New();
    directive.mutable_welcome()->mutable_lease_ttl()->set_seconds(5);
    directive.mutable_welcome()->mutable_heartbeat_interval()->set_seconds(1);
    return directive;
  }
  v1::Directive Ack(int64_t sequence) const {
    v1::Directive directive = New();
    directive.mutable_heartbeat_ack()->set_sequence(sequence);
    return directive;
  }
  v1::Directive Form(int64_t generation, const std::string& uid = kUid) const {
    v1::Directive directive = New();
    *directive.mutable_form_ring()->mutable_ring() = Ring(generation, uid);
    directive.mutable_form_ring()->set_directory("/jobs/" + uid);
    return directive;
  }
  v1::Directive Connect(int64_t generation, int64_t step = 0, const std::string& uid = kUid) const {
    v1::Directive directive = New();
    *directive.mutable_connect_ring()->mutable_ring() = Ring(generation, uid);
    directive.mutable_connect_ring()->mutable_restore()->set_step(step);
    return directive;
  }
  v1::Directive Start(int64_t generation) const {
    v1::Directive directive = New();
    *directive.mutable_start_steps()->mutable_ring() = Ring(generation);
    return directive;
  }
  v1::Directive Abort(int64_t generation, const std::string& uid = kUid) const {
    v1::Directive directive = New();
    *directive.mutable_abort_ring()->mutable_ring() = Ring(generation, uid);
    return directive;
  }
  v1::Directive Release(int64_t generation, const std::string& uid = kUid) const {
    v1::Directive directive = New();
    directive.mutable_release_job()->set_training_job_uid(uid);
    directive.mutable_release_job()->set_generation(generation);
    return directive;
  }
  v1::Directive Committed(int64_t generation, int64_t step) const {
    v1::Directive directive = New();
    *directive.mutable_checkpoint_committed()->mutable_ring() = Ring(generation);
    directive.mutable_checkpoint_committed()->mutable_checkpoint()->set_step(step);
    return directive;
  }
  v1::Directive Delete(int64_t generation) const {
    v1::Directive directive = New();
    *directive.mutable_delete_files()->mutable_ring() = Ring(generation);
    directive.mutable_delete_files()->add_paths("/jobs/uid-a/x");
    return directive;
  }

  Event Opened(int64_t generation) const { return TransportOpened{Ring(generation), "addr", {}}; }
  Event RestoredAt(int64_t generation, int64_t step = 0) const {
    return Restored{.ring = Ring(generation), .held = Held(step)};
  }
  Event Step(int64_t generation, int64_t step) const {
    StepDone done{.ring = Ring(generation), .held_step = step};
    done.record.set_step(step);
    return done;
  }
  Event Shard(int64_t generation, int64_t step) const {
    ShardDone done;
    *done.report.mutable_ring() = Ring(generation);
    done.report.set_step(step);
    return done;
  }
  Event Finished(int64_t generation, int64_t step = 3) const {
    return AllStepsDone{Ring(generation), Held(step), ""};
  }
  Event Stopped(int64_t generation, int64_t step = 2) const {
    return RingStopped{.ring = Ring(generation), .held = Held(step)};
  }
  Event Faulted(int64_t generation) const {
    RingStopped stopped{.ring = Ring(generation), .held = Held(2), .faulted = true};
    stopped.fault.set_kind(v1::Fault::EXCEPTION);
    return stopped;
  }

  // Attached and brought, in generation `generation`, to `phase`.
  void Reach(v1::Phase phase, int64_t generation) {
    Do(StreamUp{});
    Direct(Welcome());
    if (phase == v1::PHASE_IDLE) return;
    Direct(Form(generation));
    Do(Opened(generation));
    if (phase == v1::PHASE_JOINING) return;
    Direct(Connect(generation));
    if (phase == v1::PHASE_CONNECTING) return;
    Do(RestoredAt(generation));
    if (phase == v1::PHASE_READY) return;
    Direct(Start(generation));
    if (phase == v1::PHASE_RUNNING) return;
    if (phase == v1::PHASE_ABORTING) {
      Direct(Abort(generation));
      return;
    }
    Do(Finished(generation));
  }

  const v1::WorkerReport& Report(size_t index) const {
    return std::get<SendReport>(last_.at(index)).report;
  }
  void Advance(absl::Duration by) { now_ += by; }
  SessionCore& core() { return core_; }
  const std::vector<Action>& last() const { return last_; }
  absl::Time now() const { return now_; }
  void set_epoch(int64_t epoch) { epoch_ = epoch; }

 private:
  static std::string Word(const Action& action) {
    struct Words {
      std::string operator()(const SendReport& send) const {
        const v1::WorkerReport& report = send.report;
        const auto* field = v1::WorkerReport::descriptor()->FindFieldByNumber(report.report_case());
        return field->message_type()->name();
      }
      std::string operator()(const OpenTransport&) const { return "OpenTransport"; }
      std::string operator()(const ConnectAndRestore&) const { return "ConnectAndRestore"; }
      std::string operator()(const RunSteps&) const { return "RunSteps"; }
      std::string operator()(const AbandonRing&) const { return "AbandonRing"; }
      std::string operator()(const StopAfterStep&) const { return "StopAfterStep"; }
      std::string operator()(const DropState&) const { return "DropState"; }
      std::string operator()(const WriteManifest&) const { return "WriteManifest"; }
      std::string operator()(const DeletePaths&) const { return "DeletePaths"; }
      std::string operator()(const worker::SetPublishing& set) const {
        return set.publishing ? "Publish" : "Unpublish";
      }
      std::string operator()(const ExitProcess& exit) const {
        return "Exit(" + std::to_string(exit.code) + ")";
      }
    };
    return std::visit(Words{}, action);
  }

  const int rank_;
  int64_t epoch_ = 1;
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(1000);
  SessionCore core_;
  std::vector<Action> last_;
};

}  // namespace ringmaster::worker
