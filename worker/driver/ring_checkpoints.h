#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "ringmaster/v1/worker_service.pb.h"
#include "worker/checkpoint/checkpoint_writer.h"
#include "worker/driver/held_job.h"

namespace ringmaster::worker {

// This rank's shards in one generation: when one is due, how long the steps may wait for the one
// before, and how the last one went. Waits end soon after `cancelled` says so, and then nothing is
// begun any more. OnShard: any thread; the rest is the trainer's.
class RingCheckpoints {
 public:
  struct Options {
    // Borrowed.
    const v1::FormRing* form = nullptr;
    HeldJob* held = nullptr;
    CheckpointWriter* writer = nullptr;
    std::string incarnation;
    // How long peers wait for this rank in their next exchange.
    absl::Duration hop_deadline;
    std::function<bool()> cancelled;
    // Hears of a shard that could not be begun; of one that was, the writer tells.
    std::function<void(v1::ShardWritten report)> failed;
  };
  explicit RingCheckpoints(Options options) : options_(std::move(options)) {}

  // After each step but the last: begins a shard when one is due.
  void AfterStep();
  // Begins the shard of the last step and waits for it: no peer waits for this rank any more, and
  // it decides whether the job succeeds. What went wrong, or nothing.
  std::string AfterLastStep();
  // Waits for the shard under way, no longer than the peers may wait.
  void Settle();

  // A shard of this generation was written, or not.
  void OnShard(const v1::ShardWritten& report);

 private:
  // After the shard under way, for which it waits at most for `patience`.
  void Begin(absl::Duration patience);
  absl::Duration Patience() const;

  const Options options_;
  std::mutex mutex_;
  std::string error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::worker
