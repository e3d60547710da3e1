#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::worker {

// Reports of the current generation that the coordinator may not have: kept to be sent again after
// a re-attach. Step records are confirmed by the acknowledgement of a heartbeat that was sent after
// them on the same stream; shard reports by CheckpointCommitted, or by falling out at the limit.
// Thread-compatible.
class UnconfirmedReports {
 public:
  UnconfirmedReports(int steps_max, int shards_max)
      : steps_max_(steps_max), shards_max_(shards_max) {}

  void AddStep(const v1::StepRecord& record);
  void AddShard(const v1::ShardWritten& report);
  void Clear();

  // Records that were not sent since the last MarkAllUnsent.
  bool HasUnsentSteps() const { return unsent_ > 0; }
  // All of these in order, marked as sent before heartbeat `next_heartbeat`.
  std::vector<v1::StepRecord> TakeUnsentSteps(int64_t next_heartbeat);
  // The stream broke: what is not confirmed counts as lost.
  void MarkAllUnsent();
  void ConfirmSteps(int64_t acknowledged_heartbeat);
  void ConfirmShards(int64_t step);

  const std::deque<v1::ShardWritten>& shards() const { return shards_; }

 private:
  struct Step {
    v1::StepRecord record;
    int64_t confirmed_by = 0;
  };
  const int steps_max_;
  const int shards_max_;
  // Ascending; the last `unsent_` of them were not sent.
  std::deque<Step> steps_;
  size_t unsent_ = 0;
  std::deque<v1::ShardWritten> shards_;
};

}  // namespace ringmaster::worker
