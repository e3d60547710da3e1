#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/session/exit_codes.h"
#include "worker/session/session_core.h"

// The coordinator's side of the conversation: what each directive does in each phase, and the
// reports that answer it.
namespace ringmaster::worker {
namespace {

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

}  // namespace

void SessionCore::OnDirective(const v1::Directive& directive) {
  if (directive.epoch() < epoch_) {
    return OnStaleCoordinator(directive.epoch());
  }
  epoch_ = directive.epoch();
  stale_deadline_ = absl::InfiniteFuture();
  switch (directive.directive_case()) {
    case v1::Directive::kWelcome:
      return OnWelcome(directive.welcome());
    case v1::Directive::kHeartbeatAck:
      return OnHeartbeatAck(directive.heartbeat_ack());
    case v1::Directive::kFormRing:
      return OnFormRing(directive.form_ring());
    case v1::Directive::kConnectRing:
      return OnConnectRing(directive.connect_ring());
    case v1::Directive::kStartSteps:
      return OnStartSteps(directive.start_steps());
    case v1::Directive::kFinishSteps:
      return OnFinishSteps(directive.finish_steps());
    case v1::Directive::kAbortRing:
      return OnAbortRing(directive.abort_ring());
    case v1::Directive::kReleaseJob:
      return OnReleaseJob(directive.release_job());
    case v1::Directive::kCheckpointCommitted:
      return OnCheckpointCommitted(directive.checkpoint_committed());
    case v1::Directive::kDeleteFiles:
      return OnDeleteFiles(directive.delete_files());
    case v1::Directive::kDrain:
      return OnStop(absl::StrCat("drain: ", directive.drain().reason()));
    case v1::Directive::kDie:
      return Exit(kExitRestart,
                  absl::StrCat("the coordinator refused this process: ", directive.die().reason()));
    case v1::Directive::DIRECTIVE_NOT_SET:
      return;  // From a newer coordinator.
  }
}

void SessionCore::OnStaleCoordinator(int64_t epoch) {
  if (phase_ == v1::PHASE_IDLE) {
    Exit(kExitRestart,
         absl::StrFormat("this coordinator's epoch is %d, this process has heard of %d: its data "
                         "was lost or is an old copy; a fresh process may serve it",
                         epoch, epoch_));
    return;
  }
  // Perhaps the right one comes back; until then the ring steps.
  stale_deadline_ = std::min(stale_deadline_, now_ + limits_.stale_coordinator_patience);
}

void SessionCore::OnWelcome(const v1::Welcome& welcome) {
  attached_ = true;
  lease_.Grant(now_, FromProto(welcome.lease_ttl()), FromProto(welcome.heartbeat_interval()));
  SetPublishingTo(true);
  SendPhaseReports();
  SendHeartbeat();
}

void SessionCore::OnHeartbeatAck(const v1::HeartbeatAck& ack) {
  lease_.Acknowledged(ack.sequence());
  unconfirmed_.ConfirmSteps(ack.sequence());
  SetPublishingTo(lease_.Held(now_));
}

void SessionCore::OnFormRing(const v1::FormRing& form) {
  if (leaving_) {
    return;
  }
  const v1::RingRef& next = form.ring();
  if (HoldsJob(next.training_job_uid()) && next.generation() <= ring().generation()) {
    const bool answered = phase_ == v1::PHASE_IDLE || phase_ == v1::PHASE_JOINING;
    if (next.generation() == ring().generation() && answered) {
      SendPhaseReports();
    }
    return;
  }
  if (!IsActive()) {
    BeginJoin(form);
    return;
  }
  const bool older = waiting_form_.has_value() &&
                     waiting_form_->ring().training_job_uid() == next.training_job_uid() &&
                     waiting_form_->ring().generation() > next.generation();
  if (!older) {
    waiting_form_ = form;
  }
  if (phase_ != v1::PHASE_ABORTING) {
    BeginAbort(absl::StrFormat("%s generation %d forms", next.training_job(), next.generation()));
  }
}

// A directive for a ring that this worker is not in: the coordinator must not wait for it.
void SessionCore::RefuseUnknownRing(const v1::RingRef& unknown, const char* directive) {
  const bool stale =
      HoldsJob(unknown.training_job_uid()) && unknown.generation() < ring().generation();
  if (stale || !attached_) {
    return;
  }
  v1::Fault* fault = NewReport()->mutable_fault();
  *fault->mutable_ring() = unknown;
  fault->set_kind(v1::Fault::FORM_ERROR);
  fault->set_where("connect");
  fault->set_message(absl::StrFormat(
      "ring generation %d rank %d: %s arrived, but this worker never joined that generation",
      unknown.generation(), unknown.rank(), directive));
}

void SessionCore::OnConnectRing(const v1::ConnectRing& connect) {
  if (!HoldsJob(connect.ring().training_job_uid()) ||
      connect.ring().generation() != ring().generation()) {
    RefuseUnknownRing(connect.ring(), "ConnectRing");
    return;
  }
  if (phase_ == v1::PHASE_JOINING && transport_address_.has_value()) {
    restore_plan_ = connect.restore();
    phase_ = v1::PHASE_CONNECTING;
    actions_.push_back(ConnectAndRestore{connect});
  } else if (phase_ == v1::PHASE_READY || phase_ == v1::PHASE_IDLE) {
    SendPhaseReports();
  }
}

void SessionCore::OnStartSteps(const v1::StartSteps& start) {
  if (!HoldsJob(start.ring().training_job_uid()) ||
      start.ring().generation() != ring().generation()) {
    RefuseUnknownRing(start.ring(), "StartSteps");
    return;
  }
  if (phase_ == v1::PHASE_READY) {
    phase_ = v1::PHASE_RUNNING;
    actions_.push_back(RunSteps{start});
  } else if (phase_ == v1::PHASE_FINISHED || phase_ == v1::PHASE_IDLE) {
    SendPhaseReports();
  }
}

// A rank that has not begun or has finished already hears of it from others, or too late.
void SessionCore::OnFinishSteps(const v1::FinishSteps& finish) {
  if (IsCurrent(finish.ring()) && phase_ == v1::PHASE_RUNNING) {
    actions_.push_back(FinishAfterStep{ring()});
  }
}

void SessionCore::OnAbortRing(const v1::AbortRing& abort) {
  if (!HoldsJob(abort.ring().training_job_uid())) {
    if (attached_) {
      *NewReport()->mutable_ring_aborted()->mutable_ring() = abort.ring();
    }
    return;
  }
  if (abort.ring().generation() < ring().generation()) {
    return;
  }
  if (abort.ring().generation() > ring().generation()) {
    aborted_as_ = abort.ring();
  }
  if (waiting_form_.has_value() &&
      waiting_form_->ring().training_job_uid() == abort.ring().training_job_uid() &&
      waiting_form_->ring().generation() <= abort.ring().generation()) {
    waiting_form_.reset();
  }
  if (phase_ == v1::PHASE_IDLE) {
    SendPhaseReports();
  } else if (phase_ != v1::PHASE_ABORTING) {
    BeginAbort(abort.reason());
  }
}

void SessionCore::OnReleaseJob(const v1::ReleaseJob& release) {
  if (waiting_form_.has_value() &&
      waiting_form_->ring().training_job_uid() == release.training_job_uid() &&
      waiting_form_->ring().generation() <= release.generation()) {
    waiting_form_.reset();
  }
  if (!HoldsJob(release.training_job_uid()) || release.generation() < ring().generation()) {
    return;
  }
  if (!IsActive()) {
    ForgetJob();
    return;
  }
  release_after_abort_ = true;
  if (phase_ != v1::PHASE_ABORTING) {
    BeginAbort(absl::StrCat("released: ", release.reason()));
  }
}

// A stored manifest is a fact whatever the generation that hears of it.
void SessionCore::OnCheckpointCommitted(const v1::CheckpointCommitted& committed) {
  if (!HoldsJob(committed.ring().training_job_uid())) {
    return;
  }
  unconfirmed_.ConfirmShards(committed.checkpoint().step());
  actions_.push_back(WriteManifest{form_.directory(), committed.checkpoint()});
}

void SessionCore::OnDeleteFiles(const v1::DeleteFiles& files) {
  if (!HoldsJob(files.ring().training_job_uid()) ||
      files.ring().generation() < ring().generation()) {
    return;
  }
  actions_.push_back(DeletePaths{form_.directory(), files});
}

// ---- reports

v1::WorkerReport* SessionCore::NewReport() {
  v1::WorkerReport& report = std::get<SendReport>(actions_.emplace_back(SendReport{})).report;
  report.set_incarnation(identity_.incarnation);
  report.set_epoch(epoch_);
  return &report;
}

void SessionCore::SendHello() {
  v1::Hello* hello = NewReport()->mutable_hello();
  hello->set_worker(identity_.worker);
  *hello->mutable_hardware() = identity_.hardware;
  hello->set_version(identity_.version);
  hello->set_supervisor(identity_.supervisor);
  hello->set_metrics_address(identity_.metrics_address);
  hello->set_phase(phase_);
  if (!ring().training_job_uid().empty()) {
    *hello->mutable_ring() = ring();
    *hello->mutable_state() = held_;
  }
}

void SessionCore::SendHeartbeat() {
  v1::Heartbeat* heartbeat = NewReport()->mutable_heartbeat();
  heartbeat->set_sequence(lease_.Sent(now_));
  heartbeat->set_phase(phase_);
  if (!ring().training_job_uid().empty()) {
    *heartbeat->mutable_ring() = ring();
    heartbeat->set_step(held_.step());
  }
}

void SessionCore::SendSteps() {
  if (!attached_ || !unconfirmed_.HasUnsentSteps()) {
    return;
  }
  v1::StepsDone* done = NewReport()->mutable_steps_done();
  *done->mutable_ring() = ring();
  for (const v1::StepRecord& record : unconfirmed_.TakeUnsentSteps(lease_.sent_sequence() + 1)) {
    *done->add_records() = record;
  }
  done->set_exchanged_bytes(exchanged_bytes_);
  done->set_planned_bytes(planned_bytes_);
  next_steps_report_ = now_ + limits_.steps_report_interval;
}

void SessionCore::SendShard(const v1::ShardWritten& shard) {
  if (attached_) {
    *NewReport()->mutable_shard_written() = shard;
  }
}

void SessionCore::TellFault() {
  if (attached_ && fault_.has_value() && !fault_told_) {
    *NewReport()->mutable_fault() = *fault_;
    fault_told_ = true;
  }
}

void SessionCore::SendPhaseReports() {
  if (!attached_ || ring().training_job_uid().empty()) {
    return;
  }
  TellFault();
  SendSteps();
  for (const v1::ShardWritten& shard : unconfirmed_.shards()) {
    SendShard(shard);
  }
  if (phase_ == v1::PHASE_JOINING && transport_address_.has_value()) {
    v1::RingJoin* join = NewReport()->mutable_ring_join();
    *join->mutable_ring() = ring();
    join->set_transport_address(*transport_address_);
    *join->mutable_state() = held_;
  } else if (phase_ == v1::PHASE_READY) {
    v1::RingReady* ready = NewReport()->mutable_ring_ready();
    *ready->mutable_ring() = ring();
    *ready->mutable_state() = held_;
    ready->set_connect_ms(connect_ms_);
    ready->set_restore_ms(restore_ms_);
  } else if (phase_ == v1::PHASE_FINISHED) {
    v1::RingFinished* finished = NewReport()->mutable_ring_finished();
    *finished->mutable_ring() = ring();
    *finished->mutable_state() = held_;
    finished->set_checkpoint_error(checkpoint_error_);
  } else if (phase_ == v1::PHASE_IDLE) {
    v1::RingAborted* aborted = NewReport()->mutable_ring_aborted();
    *aborted->mutable_ring() = aborted_as_.value_or(ring());
    *aborted->mutable_state() = held_;
    aborted->set_abort_ms(abort_ms_);
  }
}

}  // namespace ringmaster::worker
