#include "worker/driver/ring_run.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "google/protobuf/util/time_util.h"
#include "spdlog/spdlog.h"
#include "worker/checkpoint/job_directory.h"
#include "worker/driver/hardware.h"
#include "worker/driver/ring_roll.h"

namespace ringmaster::worker {
namespace {

// A rank may still be opening a large corpus when the others connect: whoever joins later than they
// did has it to do alone. How long that may take is the coordinator's to say, and it tells all when
// it gives the ring up.
constexpr absl::Duration kConnectPatience = absl::Hours(1);
constexpr absl::Duration kRollPatience = absl::Seconds(5);

absl::Duration FromProto(const google::protobuf::Duration& duration, absl::Duration otherwise) {
  const absl::Duration value =
      absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
  return value > absl::ZeroDuration() ? value : otherwise;
}

v1::StepRecord RecordOf(const StepResult& result, int64_t generation) {
  v1::StepRecord record;
  // The number of updates done: Trainer counts from 0.
  record.set_step(result.step + 1);
  record.set_generation(generation);
  record.set_loss(result.loss);
  record.set_grad_norm(result.grad_norm);
  record.set_learning_rate(result.learning_rate);
  record.set_tokens(result.tokens);
  record.set_seconds(result.seconds);
  *record.mutable_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(absl::Now()));
  return record;
}

}  // namespace

RingRun::RingRun(v1::FormRing form, RingContext* context, HeldJob* held, CheckpointWriter* writer,
                 TaskThread* files)
    : form_(std::move(form)),
      context_(context),
      held_(held),
      files_(files),
      checkpoints_({.form = &form_,
                    .held = held,
                    .writer = writer,
                    .incarnation = context->incarnation,
                    .hop_deadline = HopDeadline(),
                    .cancelled = [this] { return cancelled(); },
                    .failed =
                        [context](v1::ShardWritten report) {
                          context->post(ShardDone{std::move(report)});
                        }}) {}

// ---- forming

void RingRun::Open() {
  if (Over()) {
    return;
  }
  // Before anything is written there.
  if (absl::Status status = CheckJobDirectory(form_.directory(), context_->shared_directory);
      !status.ok()) {
    return FailForm(FormStage::kDirectory, status);
  }
  if (context_->job_log != nullptr) {
    context_->job_log->Open(form_.directory(), rank(), form_.ring().generation());
  }
  if (absl::Status status = held_->Adopt(form_); !status.ok()) {
    return FailForm(FormStage::kSpec, status);
  }
  if (absl::Status status = SignRingRoll(form_, context_->incarnation); !status.ok()) {
    return FailForm(FormStage::kDirectory, status);
  }
  if (context_->advertise_host.empty() && form_.transport() == "ucx") {
    auto found = RouteAddress(context_->coordinator);
    if (!found.ok()) {
      return FailForm(FormStage::kOpen, found.status());
    }
    context_->advertise_host = *std::move(found);
  }
  auto opened =
      context_->open_communicator(form_.transport(), {.generation = form_.ring().generation(),
                                                      .rank = rank(),
                                                      .world_size = held_->config().world_size(),
                                                      .hop_deadline = HopDeadline(),
                                                      .host = context_->advertise_host,
                                                      .device_index = context_->device_index});
  if (!opened.ok()) {
    return FailForm(FormStage::kOpen, opened.status());
  }
  {
    absl::MutexLock lock(&mutex_);
    communicator_ = *std::move(opened);
    if (cancelled()) {
      communicator_->Abort(cancel_reason_);
    }
  }
  context_->post(TransportOpened{form_.ring(), communicator_->address(), held_->Report()});
  // Meanwhile the coordinator gathers the others.
  if (absl::Status status = held_->Build([this] { return cancelled(); }); !status.ok()) {
    FailForm(FormStage::kBuild, status);
  }
}

void RingRun::Connect(const v1::ConnectRing& connect) {
  if (Over()) {
    return;
  }
  const absl::Time start = SteadyNow();
  const auto is_cancelled = [this] { return cancelled(); };
  const std::vector<std::string> addresses(connect.transport_addresses().begin(),
                                           connect.transport_addresses().end());
  if (absl::Status status =
          communicator_->Connect(addresses, std::max(HopDeadline(), kConnectPatience));
      !status.ok()) {
    return FailForm(FormStage::kConnect, status);
  }
  if (absl::Status status = CheckRingRoll(form_, kRollPatience, is_cancelled); !status.ok()) {
    return FailForm(FormStage::kDirectory, status);
  }
  const absl::Time connected = SteadyNow();
  if (absl::Status status =
          held_->Restore(connect.restore(), form_.spec(), rank(), *communicator_, is_cancelled);
      !status.ok()) {
    const v1::RecoveryEpisode::Restore source = connect.restore().source();
    const bool from_files =
        source == v1::RecoveryEpisode::CHECKPOINT || source == v1::RecoveryEpisode::FRESH;
    return FailForm(from_files ? FormStage::kLoad : FormStage::kRestore, status);
  }
  const v1::HeldState held = held_->Report();
  auto trainer = Trainer::Create(held_->config(), &held_->state(),
                                 {.communicator = communicator_.get(),
                                  .generation = form_.ring().generation(),
                                  .fault = context_->fault},
                                 held_->source());
  if (!trainer.ok()) {
    return FailForm(FormStage::kBuild, trainer.status());
  }
  {
    absl::MutexLock lock(&mutex_);
    trainer_ = *std::move(trainer);
  }
  const absl::Time restored = SteadyNow();
  context_->metrics->OnRestore(restored - connected);
  SPDLOG_INFO(
      "ring generation {} formed: rank {} of {} over {}, step {} from {}; connected in {}, "
      "restored in {}",
      form_.ring().generation(), rank(), held_->config().world_size(), form_.transport(),
      held.step(), v1::RecoveryEpisode::Restore_Name(connect.restore().source()),
      absl::FormatDuration(connected - start), absl::FormatDuration(restored - connected));
  context_->post(Restored{.ring = form_.ring(),
                          .held = held,
                          .connect_ms = absl::ToInt64Milliseconds(connected - start),
                          .restore_ms = absl::ToInt64Milliseconds(restored - connected)});
}

// ---- training

void RingRun::Run() {
  if (Over()) {
    return;
  }
  LeaveRingRoll(form_, context_->incarnation);
  context_->metrics->EnterRing(form_.ring());
  auto log = StepLog::Open(form_.directory(), form_.ring().training_job_uid());
  if (log.ok()) {
    step_log_ = *std::move(log);
  } else {
    SPDLOG_ERROR("step records will be missing: {}", log.status().ToString());
  }
  RepeatLastStep();
  while (!Over() && held_->state().step() < held_->config().steps && OneStep()) {
  }
  if (!Over()) {
    FinishSteps();
  }
}

// The step that this generation goes on from may have been agreed on without the coordinator's
// hearing of it: the rank that was to tell it died or was told to abort. Its validation may be lost
// with that rank too; all ranks do it again, since all stand at the same step.
void RingRun::RepeatLastStep() {
  const int64_t step = held_->state().step();
  if (step == 0) {
    return;
  }
  v1::StepRecord record;
  if (trainer_->ValidationDue() && !RunValidation(record).ok()) {
    return FailStep();
  }
  std::optional<v1::StepRecord> found;
  if (rank() == 0 && step_log_ != nullptr) {
    found = step_log_->Find(step);
  }
  if (!found.has_value()) {
    return;
  }
  if (record.has_validation_loss() && !found->has_validation_loss()) {
    found->set_validation_loss(record.validation_loss());
    last_record_ = found;
    last_record_written_ = false;
    AppendRecord();
  }
  context_->post(StepDone{.ring = form_.ring(), .record = *found, .held_step = step});
}

absl::Status RingRun::RunValidation(v1::StepRecord& record) {
  ASSIGN_OR_RETURN(const double loss, trainer_->Validate());
  record.set_validation_loss(loss);
  return absl::OkStatus();
}

bool RingRun::OneStep() {
  held_->Touch();
  const auto result = trainer_->RunStep();
  if (!result.ok()) {
    FailStep();
    return false;
  }
  last_record_ = RecordOf(*result, form_.ring().generation());
  last_record_written_ = false;
  if (trainer_->ValidationDue() && !RunValidation(*last_record_).ok()) {
    FailStep();
    return false;
  }
  if (rank() == 0) {
    AppendRecord();
  }
  const auto exchanged = static_cast<int64_t>(result->exchanged_bytes);
  const auto planned = static_cast<int64_t>(result->planned_bytes);
  context_->metrics->OnStep(
      *last_record_,
      {.sent = static_cast<int64_t>(result->sent_bytes), .busiest = exchanged, .planned = planned});
  context_->metrics->SampleDeviceMemory();
  context_->post(StepDone{.ring = form_.ring(),
                          .record = *last_record_,
                          .held_step = held_->state().step(),
                          .exchanged_bytes = exchanged,
                          .planned_bytes = planned});
  if (held_->state().step() >= held_->config().steps || result->stop == Stop::kFinish) {
    return false;
  }
  checkpoints_.AfterStep();
  if (result->stop == Stop::kLeave) {
    StopInOrder();
    return false;
  }
  return true;
}

// Before the step is reported, so that what the coordinator knows is in the file.
void RingRun::AppendRecord() {
  if (step_log_ == nullptr || !last_record_.has_value() || last_record_written_) {
    return;
  }
  last_record_written_ = true;
  const absl::Status status = step_log_->Append(*last_record_);
  if (!status.ok() && !step_log_failing_) {
    SPDLOG_ERROR("records from step {} on wait for room: {}", last_record_->step(),
                 status.ToString());
  }
  step_log_failing_ = !status.ok();
}

// A step that rank 0 did not live to record was agreed on all the same. Not on this thread, which
// has an abort deadline to meet.
void RingRun::CloseStepLog() {
  if (step_log_ == nullptr) {
    return;
  }
  std::optional<v1::StepRecord> orphan;
  if (!last_record_written_) {
    orphan = last_record_;
  }
  files_->Add([log = std::shared_ptr<StepLog>(std::move(step_log_)), orphan] {
    if (!orphan.has_value()) {
      return;
    }
    const auto found = log->Find(orphan->step());
    if (found.has_value() && found->generation() == orphan->generation()) {
      return;
    }
    if (absl::Status status = log->Append(*orphan); !status.ok()) {
      SPDLOG_ERROR("the record of step {} is missing: {}", orphan->step(), status.ToString());
    }
  });
}

void RingRun::FinishSteps() {
  std::string checkpoint_error = checkpoints_.AfterLastStep();
  if (Over()) {
    return;
  }
  if (absl::Status status = communicator_->Close(); !status.ok()) {
    // All steps are done and the state is written: nothing is lost.
    SPDLOG_WARN("closing the ring: {}", status.ToString());
  }
  if (absl::Status status = held_->Examine(); !status.ok()) {
    context_->die(absl::StrCat("the device is lost: ", status.message()));
  }
  SPDLOG_INFO("finished after step {} of {}", held_->state().step(), held_->config().steps);
  context_->post(AllStepsDone{.ring = form_.ring(),
                              .held = held_->Report(),
                              .checkpoint_error = std::move(checkpoint_error)});
}

void RingRun::StopInOrder() {
  SPDLOG_INFO("stopping after step {}, as agreed by all ranks", held_->state().step());
  checkpoints_.Settle();
  if (Over()) {
    return;
  }
  if (absl::Status status = communicator_->Close(); !status.ok()) {
    SPDLOG_WARN("closing the ring: {}", status.ToString());
  }
  stopped_ = true;
  LetGo(v1::Fault::KIND_UNSPECIFIED);
  context_->post(RingStopped{.ring = form_.ring(), .held = held_->Report()});
}

// ---- giving up

void RingRun::Cancel(const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  if (cancelled_.exchange(true)) {
    return;
  }
  cancel_reason_ = reason;
  if (communicator_ != nullptr) {
    communicator_->Abort(reason);
  }
}

void RingRun::RequestStop(Stop stop) {
  absl::MutexLock lock(&mutex_);
  if (trainer_ != nullptr) {
    trainer_->RequestStop(stop);
  }
}

void RingRun::Finish() {
  if (!stopped_) {
    stopped_ = true;
    LetGo(own_fault_.has_value() ? own_fault_->kind() : v1::Fault::KIND_UNSPECIFIED);
  }
  RingStopped answer{.ring = form_.ring(), .held = held_->Report()};
  if (own_fault_.has_value()) {
    answer.faulted = true;
    answer.fault = *std::exchange(own_fault_, std::nullopt);
  }
  context_->post(std::move(answer));
}

void RingRun::FailForm(FormStage stage, const absl::Status& status) {
  if (absl::IsCancelled(status) && cancelled()) {
    // Finish answers.
    return;
  }
  Fail(FormFault(form_.ring(), stage, status));
}

void RingRun::Fail(v1::Fault fault) {
  if (Over()) {
    // What the trainer runs into while its communicator is taken away is no fault; Finish answers.
    // But a peer may have noticed this rank's own fault first: then it is why the ring was given
    // up.
    if (!stopped_ && fault.kind() != v1::Fault::COMMUNICATION_ERROR) {
      own_fault_ = std::move(fault);
    }
    return;
  }
  stopped_ = true;
  SPDLOG_ERROR("{}", fault.message());
  context_->metrics->OnFault(fault.kind());
  LetGo(fault.kind());
  context_->post(RingStopped{
      .ring = form_.ring(), .held = held_->Report(), .faulted = true, .fault = std::move(fault)});
}

void RingRun::LetGo(v1::Fault::Kind fault) {
  CloseStepLog();
  context_->metrics->LeaveRing();
  std::unique_ptr<Communicator> communicator;
  std::unique_ptr<Trainer> trainer;
  {
    absl::MutexLock lock(&mutex_);
    communicator = std::move(communicator_);
    trainer = std::move(trainer_);
    if (communicator != nullptr) {
      communicator->Abort(cancelled() ? cancel_reason_ : "the ring is over");
    }
  }
  if (communicator != nullptr) {
    if (absl::Status status = communicator->AwaitReleased(AbortDeadline()); !status.ok()) {
      context_->die(absl::StrCat("ring generation ", form_.ring().generation(),
                                 ": the transport does not let go: ", status.message()));
    }
  }
  // Only now: the transport touches its buffers no more.
  trainer.reset();
  if (fault == v1::Fault::OUT_OF_MEMORY_ERROR) {
    // Before the state is read, which takes memory too.
    held_->TrimMemory();
  }
  if (absl::Status status = held_->Examine(); !status.ok()) {
    context_->die(absl::StrCat("the device is lost: ", status.message()));
  }
}

absl::Duration RingRun::AbortDeadline() const {
  return FromProto(form_.spec().recovery().abort_deadline(), absl::Seconds(5));
}

absl::Duration RingRun::HopDeadline() const {
  return FromProto(form_.spec().recovery().hop_deadline(), absl::Seconds(30));
}

}  // namespace ringmaster::worker
