#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "worker/checkpoint/checkpoint_writer.h"
#include "worker/driver/held_job.h"
#include "worker/driver/ring_run.h"
#include "worker/session/session_events.h"

namespace ringmaster::worker {

// A thread that does what it is told, in order.
class TaskThread {
 public:
  TaskThread();
  // Does everything that was added, then ends.
  ~TaskThread();
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  void Add(std::function<void()> task);

 private:
  void Loop();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Does the session core's ring and file actions, each off the control thread: rings on the
// trainer's thread, shards on the writer's, manifests and deletions on a third. Answers by
// RingContext::post. Called by the control thread only; never blocks it.
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
  void Do(const DropState& action);
  void Do(const WriteManifest& action);
  void Do(const DeletePaths& action);

 private:
  // On the trainer's thread.
  void Train(std::function<void()> task);
  // Removes what earlier generations left behind.
  void Sweep(const v1::FormRing& form, const v1::StartSteps& start) const;
  bool MayWriteIn(const std::string& job_directory) const;
  void OnShardWritten(v1::ShardWritten report);

  RingContext context_;
  HeldJob held_;
  // Set by the control thread, read by the writer's too.
  absl::Mutex mutex_;
  std::shared_ptr<RingRun> run_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RingRun> run();

  CheckpointWriter writer_;
  TaskThread files_;
  // Last: its tasks use everything above.
  TaskThread trainer_;
};

}  // namespace ringmaster::worker
