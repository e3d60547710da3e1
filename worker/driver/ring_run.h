#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/checkpoint/checkpoint_writer.h"
#include "worker/comm/communicator.h"
#include "worker/driver/held_job.h"
#include "worker/driver/job_log.h"
#include "worker/driver/ring_checkpoints.h"
#include "worker/driver/ring_faults.h"
#include "worker/driver/step_log.h"
#include "worker/driver/task_thread.h"
#include "worker/driver/worker_metrics.h"
#include "worker/session/session_events.h"
#include "worker/train/fault_injection.h"
#include "worker/train/trainer.h"

namespace ringmaster::worker {

using CommunicatorFactory = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
    const std::string& transport, const CommunicatorOptions& options)>;

// What every generation of one worker process works with. Everything is borrowed or shared and
// outlives the runs.
struct RingContext {
  // 32 hexadecimal digits.
  std::string incarnation;
  // Numeric address at which peers reach this worker over UCX. Empty: not known yet, as names may
  // not resolve when a host starts; a ring asks for the route to `coordinator` ("host:port") and
  // keeps it here.
  std::string advertise_host;
  std::string coordinator;
  int device_index = 0;
  // Jobs' directories must lie below it; empty: anywhere.
  std::string shared_directory;
  FaultInjection fault;
  CommunicatorFactory open_communicator;
  // To the session core. Any thread.
  std::function<void(Event)> post;
  // This process cannot go on (a transport that does not let go): does not return in production.
  std::function<void(const std::string& reason)> die;
  WorkerMetrics* metrics = nullptr;
  // May be null.
  JobLog* job_log = nullptr;
};

// One rank in one generation: opens the transport, connects, restores, trains, and gives up. Cancel
// and RequestStop may be called from any thread; everything else runs on the trainer's thread, in
// the order Open, Connect, Run, Finish, and tells its results by RingContext::post. After a failure
// or Cancel the later calls do nothing, except Finish.
class RingRun {
 public:
  // `files` does what may hang with the shared file system and nobody waits for.
  RingRun(v1::FormRing form, RingContext* context, HeldJob* held, CheckpointWriter* writer,
          TaskThread* files);

  void Open();
  void Connect(const v1::ConnectRing& connect);
  void Run();
  // Lets go of the communicator and answers with RingStopped. After Cancel.
  void Finish();

  // Makes the trainer's thread return soon, wherever it is. Nothing is posted afterwards but
  // Finish's answer.
  void Cancel(const std::string& reason);
  // Stop between two steps, together with all other ranks: Trainer::RequestStop. While it runs;
  // else without effect.
  void RequestStop(Stop stop);

  bool cancelled() const { return cancelled_.load(); }
  const v1::FormRing& form() const { return form_; }
  // A shard of this run was written, or not: AllStepsDone tells how the last one went. Any thread.
  void OnShard(const v1::ShardWritten& report) { checkpoints_.OnShard(report); }

 private:
  bool Over() const { return stopped_ || cancelled(); }
  // The step and what follows it; false when no other step is to follow.
  bool OneStep();
  absl::Status RunValidation(v1::StepRecord& record);
  void RepeatLastStep();
  void AppendRecord();
  void CloseStepLog();
  void FinishSteps();
  void StopInOrder();

  void FailForm(FormStage stage, const absl::Status& status);
  void FailStep() { Fail(FaultOf(form_.ring(), trainer_->fault())); }
  void Fail(v1::Fault fault);
  // The generation is over on this rank, perhaps by this fault of its own: nothing of its
  // communicator is left.
  void LetGo(v1::Fault::Kind fault);
  absl::Duration AbortDeadline() const;
  absl::Duration HopDeadline() const;
  int rank() const { return form_.ring().rank(); }

  const v1::FormRing form_;
  RingContext* const context_;
  HeldJob* const held_;
  TaskThread* const files_;

  std::atomic<bool> cancelled_{false};
  absl::Mutex mutex_;
  std::string cancel_reason_ ABSL_GUARDED_BY(mutex_);
  // Set and cleared by the trainer's thread only, which may read it without the lock.
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Trainer> trainer_;

  RingCheckpoints checkpoints_;

  // The trainer's thread only.
  bool stopped_ = false;
  // Found while the run was being cancelled.
  std::optional<v1::Fault> own_fault_;
  std::unique_ptr<StepLog> step_log_;
  bool step_log_failing_ = false;
  std::optional<v1::StepRecord> last_record_;
  bool last_record_written_ = false;
};

}  // namespace ringmaster::worker
