#include "tests/worker/session/session_driver.h"

#include <variant>

#include "absl/strings/str_join.h"

namespace ringmaster::worker {

SessionIdentity SessionDriver::Identity() {
  return {.worker = "workers/w0",
          .incarnation = std::string(32, 'a'),
          .supervisor = std::string(32, 'b'),
          .version = "test"};
}

v1::RingRef SessionDriver::Ring(int64_t generation, const std::string& uid) const {
  v1::RingRef ring;
  ring.set_training_job("projects/p/trainingJobs/" + uid);
  ring.set_training_job_uid(uid);
  ring.set_generation(generation);
  ring.set_rank(rank_);
  return ring;
}

std::string SessionDriver::Do(const Event& event) {
  last_ = core_.Handle(now_, event);
  return absl::StrJoin(last_, " ",
                       [](std::string* out, const Action& action) { *out += Word(action); });
}

v1::Directive SessionDriver::New() const {
  v1::Directive directive;
  directive.set_epoch(epoch_);
  return directive;
}

v1::Directive SessionDriver::Welcome() const {
  v1::Directive directive = New();
  directive.mutable_welcome()->mutable_lease_ttl()->set_seconds(5);
  directive.mutable_welcome()->mutable_heartbeat_interval()->set_seconds(1);
  return directive;
}

v1::Directive SessionDriver::Ack(int64_t sequence) const {
  v1::Directive directive = New();
  directive.mutable_heartbeat_ack()->set_sequence(sequence);
  return directive;
}

v1::Directive SessionDriver::Form(int64_t generation, const std::string& uid) const {
  v1::Directive directive = New();
  *directive.mutable_form_ring()->mutable_ring() = Ring(generation, uid);
  directive.mutable_form_ring()->set_directory("/jobs/" + uid);
  return directive;
}

v1::Directive SessionDriver::Connect(int64_t generation, int64_t step,
                                     const std::string& uid) const {
  v1::Directive directive = New();
  *directive.mutable_connect_ring()->mutable_ring() = Ring(generation, uid);
  directive.mutable_connect_ring()->mutable_restore()->set_step(step);
  return directive;
}

v1::Directive SessionDriver::Start(int64_t generation) const {
  v1::Directive directive = New();
  *directive.mutable_start_steps()->mutable_ring() = Ring(generation);
  return directive;
}

v1::Directive SessionDriver::Abort(int64_t generation, const std::string& uid) const {
  v1::Directive directive = New();
  *directive.mutable_abort_ring()->mutable_ring() = Ring(generation, uid);
  return directive;
}

v1::Directive SessionDriver::Release(int64_t generation, const std::string& uid) const {
  v1::Directive directive = New();
  directive.mutable_release_job()->set_training_job_uid(uid);
  directive.mutable_release_job()->set_generation(generation);
  return directive;
}

v1::Directive SessionDriver::Committed(int64_t generation, int64_t step) const {
  v1::Directive directive = New();
  *directive.mutable_checkpoint_committed()->mutable_ring() = Ring(generation);
  directive.mutable_checkpoint_committed()->mutable_checkpoint()->set_step(step);
  return directive;
}

v1::Directive SessionDriver::FinishSteps(int64_t generation, const std::string& uid) const {
  v1::Directive directive = New();
  *directive.mutable_finish_steps()->mutable_ring() = Ring(generation, uid);
  return directive;
}

v1::Directive SessionDriver::Delete(int64_t generation) const {
  v1::Directive directive = New();
  *directive.mutable_delete_files()->mutable_ring() = Ring(generation);
  directive.mutable_delete_files()->add_paths("/jobs/uid-a/x");
  return directive;
}

Event SessionDriver::RestoredAt(int64_t generation, int64_t step) const {
  return Restored{.ring = Ring(generation), .held = Held(step)};
}

Event SessionDriver::Step(int64_t generation, int64_t step) const {
  StepDone done{.ring = Ring(generation), .held_step = step};
  done.record.set_step(step);
  return done;
}

Event SessionDriver::Shard(int64_t generation, int64_t step) const {
  ShardDone done;
  *done.report.mutable_ring() = Ring(generation);
  done.report.set_step(step);
  return done;
}

Event SessionDriver::Finished(int64_t generation, int64_t step) const {
  return AllStepsDone{Ring(generation), Held(step), ""};
}

Event SessionDriver::Stopped(int64_t generation, int64_t step) const {
  return RingStopped{.ring = Ring(generation), .held = Held(step)};
}

Event SessionDriver::Faulted(int64_t generation) const {
  RingStopped stopped{.ring = Ring(generation), .held = Held(2), .faulted = true};
  stopped.fault.set_kind(v1::Fault::EXCEPTION);
  return stopped;
}

void SessionDriver::Reach(v1::Phase phase, int64_t generation) {
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

const v1::WorkerReport& SessionDriver::Report(size_t index) const {
  return std::get<SendReport>(last_.at(index)).report;
}

std::string SessionDriver::Word(const Action& action) {
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
    std::string operator()(const FinishAfterStep&) const { return "FinishAfterStep"; }
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

}  // namespace ringmaster::worker
