#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/checkpoint/checkpoint_writer.h"
#include "worker/driver/held_job.h"
#include "worker/driver/ring_run.h"
#include "worker/driver/task_thread.h"
#include "worker/session/session_events.h"

namespace ringmaster::worker {

// Does the session core's ring and file actions, each off the control thread: rings on the
// trainer's thread, shards on the writer's, what else touches the shared disk on a third. Answers
// by RingContext::post. Called by the control thread only; never blocks it.
class RingRunner {
 public:
  // `device` is "cpu" or "cuda". `context.post` may be called until the destructor returns.
  RingRunner(const std::string& device, RingContext context);
  // Cancels what runs and joins the threads.
  ~RingRunner();

  void Do(const OpenTransport& action);
  void Do(const ConnectAndRestore& action);
  void Do(const RunSteps& action);
  void Do(const AbandonRing& action);
  void Do(const StopAfterStep& action);
  void Do(const FinishAfterStep& action);
  void Do(const DropState& action);
  void Do(const WriteManifest& action);
  void Do(const DeletePaths& action);

 private:
  // On the trainer's thread.
  void Train(std::function<void()> task);
  // Removes what earlier generations left behind.
  void Sweep(const v1::FormRing& form, const v1::StartSteps& start);
  bool MayWriteIn(const std::string& job_directory) const;
  void OnShardWritten(v1::ShardWritten report);

  RingContext context_;
  HeldJob held_;
  // Set by the control thread, read by the writer's and the files' too. Null when the job is over
  // here.
  absl::Mutex mutex_;
  std::shared_ptr<RingRun> run_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RingRun> run();

  CheckpointWriter writer_;
  TaskThread files_;
  // Last: its tasks use everything above.
  TaskThread trainer_;
};

}  // namespace ringmaster::worker
