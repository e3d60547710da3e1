#pragma once

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ringmaster/v1/worker_service.pb.h"
#include "worker/checkpoint/shard_file.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// Writes this rank's shards off the trainer's thread: Begin copies the rank's share of the state to
// host memory, at a step boundary, and returns; a thread of its own does the slow part. At most one
// shard is under way. Thread-safe; in practice Begin and AwaitIdle are the trainer's.
class CheckpointWriter {
 public:
  // `done` is called on the writer's thread, once per Begin that returned OK: with the shard, or
  // with `error` set.
  explicit CheckpointWriter(std::function<void(v1::ShardWritten, absl::Duration)> done);
  // Waits for the shard under way.
  ~CheckpointWriter();

  // ResourceExhausted when there is no memory for the copy, FailedPrecondition while another shard
  // is under way.
  absl::Status Begin(const ShardIdentity& identity,
                     absl::Span<const TrainingState::NamedTensor> state);

  // True when nothing is under way any more, within `patience`, or until `cancelled` says so (asked
  // every 10 ms).
  bool AwaitIdle(absl::Duration patience, const std::function<bool()>& cancelled);

 private:
  struct Job {
    ShardIdentity identity;
    std::vector<std::string> names;
    // Host memory, contiguous.
    std::vector<at::Tensor> tensors;
  };

  void Loop();
  static v1::ShardWritten Write(const Job& job);

  const std::function<void(v1::ShardWritten, absl::Duration)> done_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Set from Begin until `done_` returned.
  std::optional<Job> job_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ringmaster::worker
