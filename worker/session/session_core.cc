#include "worker/session/session_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {

SessionCore::SessionCore(SessionIdentity identity, SessionLimits limits)
    : identity_(std::move(identity)),
      limits_(limits),
      unconfirmed_(limits.unconfirmed_records_max, limits.unconfirmed_shards_max) {}

std::vector<Action> SessionCore::Handle(absl::Time now, const Event& event) {
  if (exited_) {
    return {};
  }
  now_ = now;
  struct Visitor {
    SessionCore& core;
    void operator()(const StreamUp&) { core.OnStreamUp(); }
    void operator()(const StreamDown& down) { core.OnStreamDown(down); }
    void operator()(const TimerTick&) { core.OnTick(); }
    void operator()(const DirectiveArrived& arrived) { core.OnDirective(arrived.directive); }
    void operator()(const TransportOpened& opened) { core.OnTransportOpened(opened); }
    void operator()(const Restored& restored) { core.OnRestored(restored); }
    void operator()(const StepDone& done) { core.OnStepDone(done); }
    void operator()(const ShardDone& done) { core.OnShardDone(done); }
    void operator()(const PathsDeleted& deleted) {
      // Unheard, the coordinator tells it again.
      if (core.attached_) {
        *core.NewReport()->mutable_files_deleted() = deleted.report;
      }
    }
    void operator()(const AllStepsDone& done) { core.OnAllStepsDone(done); }
    void operator()(const RingStopped& stopped) { core.OnRingStopped(stopped); }
    void operator()(const StopRequested&) { core.OnStop("SIGTERM"); }
  };
  std::visit(Visitor{*this}, event);
  return std::exchange(actions_, {});
}

absl::Time SessionCore::NextTimer() const {
  if (exited_) {
    return absl::InfiniteFuture();
  }
  absl::Time next =
      std::min({lease_.NextTimer(now_), abort_deadline_, drain_deadline_, stale_deadline_});
  if (attached_ && unconfirmed_.HasUnsentSteps()) {
    next = std::min(next, next_steps_report_);
  }
  return next;
}

bool SessionCore::HoldsJob(const std::string& uid) const {
  return !uid.empty() && ring().training_job_uid() == uid;
}

bool SessionCore::IsCurrent(const v1::RingRef& ring) const {
  return IsActive() && HoldsJob(ring.training_job_uid()) &&
         ring.generation() == this->ring().generation();
}

// ---- time and the stream

void SessionCore::OnStreamUp() {
  attached_ = false;
  SendHello();
}

void SessionCore::OnStreamDown(const StreamDown& down) {
  attached_ = false;
  fault_told_ = false;
  lease_.Suspend();
  unconfirmed_.MarkAllUnsent();
  if (down.name_taken.empty()) {
    refused_since_ = absl::InfiniteFuture();
    return;
  }
  refused_since_ = std::min(refused_since_, now_);
  if (now_ - refused_since_ >= limits_.name_patience) {
    Exit(kExitUsage,
         absl::StrCat(down.name_taken, "; every worker needs a name of its own (--worker-id)"));
  }
}

void SessionCore::OnTick() {
  if (now_ >= abort_deadline_) {
    Exit(kExitRestart,
         absl::StrFormat(
             "ring generation %d: not abandoned within %s; this process must be replaced",
             ring().generation(), absl::FormatDuration(now_ - abort_started_)));
    return;
  }
  if (now_ >= stale_deadline_) {
    Exit(kExitRestart, "the coordinator has forgotten this ring; this process must be replaced");
    return;
  }
  if (now_ >= drain_deadline_) {
    drain_deadline_ = absl::InfiniteFuture();
    BeginAbort(absl::StrCat(leave_reason_,
                            phase_ == v1::PHASE_FINISHED ? ": the ring was not let go within "
                                                         : ": the step did not end within ",
                            absl::FormatDuration(limits_.drain_deadline)));
  }
  SetPublishingTo(lease_.Held(now_));
  if (attached_ && lease_.HeartbeatDue(now_)) {
    SendHeartbeat();
  }
  if (unconfirmed_.HasUnsentSteps() && now_ >= next_steps_report_) {
    SendSteps();
  }
}

void SessionCore::SetPublishingTo(bool publishing) {
  if (publishing_ != publishing) {
    publishing_ = publishing;
    actions_.push_back(SetPublishing{publishing});
  }
}

// ---- results of actions

void SessionCore::OnTransportOpened(const TransportOpened& opened) {
  if (!IsCurrent(opened.ring) || phase_ != v1::PHASE_JOINING) {
    return;
  }
  transport_address_ = opened.address;
  held_ = opened.held;
  SendPhaseReports();
}

void SessionCore::OnRestored(const Restored& restored) {
  if (!IsCurrent(restored.ring) || phase_ != v1::PHASE_CONNECTING) {
    return;
  }
  held_ = restored.held;
  const bool digest_matters = restore_plan_.digest() != 0;
  if (!held_.clean() || held_.step() != restore_plan_.step() ||
      (digest_matters && held_.digest() != restore_plan_.digest())) {
    v1::Fault fault;
    fault.set_kind(v1::Fault::FORM_ERROR);
    fault.set_where("restore");
    fault.set_message(absl::StrFormat(
        "ring generation %d rank %d: restored %s state of step %d (digest %016x), the ring needs "
        "step %d (digest %016x)",
        ring().generation(), ring().rank(), held_.clean() ? "clean" : "torn", held_.step(),
        held_.digest(), restore_plan_.step(), restore_plan_.digest()));
    Fail(std::move(fault));
    return;
  }
  connect_ms_ = restored.connect_ms;
  restore_ms_ = restored.restore_ms;
  phase_ = v1::PHASE_READY;
  SendPhaseReports();
}

void SessionCore::OnStepDone(const StepDone& done) {
  if (!IsCurrent(done.ring) || phase_ != v1::PHASE_RUNNING) {
    return;
  }
  // What the generation began with, told again.
  const bool repeated = held_.present() && held_.step() == done.held_step;
  held_.set_present(true);
  held_.set_step(done.held_step);
  // A state that moves is no donor; its digest is taken when the ring stops.
  held_.set_clean(false);
  held_.set_digest(0);
  if (ring().rank() != 0) {
    return;
  }
  exchanged_bytes_ = done.exchanged_bytes;
  planned_bytes_ = done.planned_bytes;
  unconfirmed_.AddStep(done.record);
  if (now_ >= next_steps_report_) {
    SendSteps();
    if (repeated) {
      // The first new step goes out at once all the same.
      next_steps_report_ = absl::InfinitePast();
    }
  }
}

void SessionCore::OnShardDone(const ShardDone& done) {
  if (!IsCurrent(done.report.ring()) || phase_ != v1::PHASE_RUNNING) {
    return;
  }
  unconfirmed_.AddShard(done.report);
  SendShard(done.report);
}

void SessionCore::OnAllStepsDone(const AllStepsDone& done) {
  if (!IsCurrent(done.ring) || phase_ != v1::PHASE_RUNNING) {
    return;
  }
  SendSteps();
  held_ = done.held;
  checkpoint_error_ = done.checkpoint_error;
  phase_ = v1::PHASE_FINISHED;
  SendPhaseReports();
}

void SessionCore::OnRingStopped(const RingStopped& stopped) {
  if (!IsCurrent(stopped.ring)) {
    return;
  }
  SendSteps();
  held_ = stopped.held;
  if (phase_ != v1::PHASE_ABORTING) {
    abort_started_ = now_;
  }
  if (stopped.faulted && !fault_.has_value()) {
    fault_ = stopped.fault;
    fault_told_ = false;
    *fault_->mutable_ring() = ring();
  }
  FinishAbort();
}

// ---- giving a ring up

void SessionCore::BeginJoin(const v1::FormRing& form) {
  if (!HoldsJob(form.ring().training_job_uid())) {
    ForgetJob();
  }
  form_ = form;
  fault_.reset();
  aborted_as_.reset();
  unconfirmed_.Clear();
  transport_address_.reset();
  checkpoint_error_.clear();
  next_steps_report_ = absl::InfinitePast();
  phase_ = v1::PHASE_JOINING;
  actions_.push_back(OpenTransport{form_});
}

void SessionCore::BeginAbort(const std::string& reason) {
  const auto& recovery = form_.spec().recovery();
  absl::Duration deadline = limits_.abort_deadline;
  if (recovery.has_abort_deadline()) {
    deadline = absl::Seconds(recovery.abort_deadline().seconds()) +
               absl::Nanoseconds(recovery.abort_deadline().nanos());
  }
  // Agreed on before; after the abort nobody tells them any more.
  SendSteps();
  phase_ = v1::PHASE_ABORTING;
  abort_started_ = now_;
  abort_deadline_ = now_ + deadline;
  drain_deadline_ = absl::InfiniteFuture();
  actions_.push_back(AbandonRing{ring(), reason});
}

void SessionCore::Fail(v1::Fault fault) {
  *fault.mutable_ring() = ring();
  fault_ = std::move(fault);
  fault_told_ = false;
  TellFault();
  BeginAbort(fault_->message());
}

void SessionCore::FinishAbort() {
  phase_ = v1::PHASE_IDLE;
  abort_deadline_ = absl::InfiniteFuture();
  drain_deadline_ = absl::InfiniteFuture();
  abort_ms_ = absl::ToInt64Milliseconds(now_ - abort_started_);
  unconfirmed_.Clear();
  std::optional<v1::FormRing> next = std::exchange(waiting_form_, std::nullopt);
  if (std::exchange(release_after_abort_, false)) {
    ForgetJob();
  }
  if (leaving_) {
    Leave(leave_reason_);
  } else if (next.has_value()) {
    BeginJoin(*next);
  } else {
    SendPhaseReports();
  }
}

void SessionCore::ForgetJob() {
  if (!ring().training_job_uid().empty()) {
    actions_.push_back(DropState{ring().training_job_uid()});
  }
  form_.Clear();
  held_.Clear();
  fault_.reset();
  aborted_as_.reset();
  unconfirmed_.Clear();
}

void SessionCore::OnStop(const std::string& reason) {
  if (leaving_) {
    if (phase_ == v1::PHASE_RUNNING || phase_ == v1::PHASE_FINISHED) {
      BeginAbort(absl::StrCat(reason, " again"));
    }
    return;
  }
  leaving_ = true;
  leave_reason_ = reason;
  if (phase_ == v1::PHASE_IDLE) {
    Leave(reason);
  } else if (phase_ == v1::PHASE_RUNNING) {
    drain_deadline_ = now_ + limits_.drain_deadline;
    actions_.push_back(StopAfterStep{ring()});
  } else if (phase_ == v1::PHASE_FINISHED) {
    // The others' shards are on their way: gone too early, it would cost all of them the
    // checkpoint.
    drain_deadline_ = now_ + limits_.drain_deadline;
  } else if (phase_ != v1::PHASE_ABORTING) {
    BeginAbort(reason);
  }
}

void SessionCore::Leave(const std::string& reason) {
  if (attached_) {
    NewReport()->mutable_goodbye();
  }
  Exit(kExitOk, reason);
}

void SessionCore::Exit(int code, const std::string& reason) {
  exited_ = true;
  actions_.push_back(ExitProcess{code, reason});
}

}  // namespace ringmaster::worker
