#include "worker/session/unconfirmed_reports.h"

#include <algorithm>

namespace ringmaster::worker {

void UnconfirmedReports::AddStep(const v1::StepRecord& record) {
  steps_.push_back({.record = record});
  ++unsent_;
  if (steps_.size() > static_cast<size_t>(steps_max_)) {
    steps_.pop_front();
    unsent_ = std::min(unsent_, steps_.size());
  }
}

void UnconfirmedReports::AddShard(const v1::ShardWritten& report) {
  shards_.push_back(report);
  if (shards_.size() > static_cast<size_t>(shards_max_)) {
    shards_.pop_front();
  }
}

void UnconfirmedReports::Clear() {
  steps_.clear();
  shards_.clear();
  unsent_ = 0;
}

std::vector<v1::StepRecord> UnconfirmedReports::TakeUnsentSteps(int64_t next_heartbeat) {
  std::vector<v1::StepRecord> records;
  for (size_t i = steps_.size() - unsent_; i < steps_.size(); ++i) {
    steps_[i].confirmed_by = next_heartbeat;
    records.push_back(steps_[i].record);
  }
  unsent_ = 0;
  return records;
}

void UnconfirmedReports::MarkAllUnsent() { unsent_ = steps_.size(); }

void UnconfirmedReports::ConfirmSteps(int64_t acknowledged_heartbeat) {
  while (steps_.size() > unsent_ && steps_.front().confirmed_by <= acknowledged_heartbeat) {
    steps_.pop_front();
  }
}

void UnconfirmedReports::ConfirmShards(int64_t step) {
  std::erase_if(shards_, [step](const v1::ShardWritten& shard) { return shard.step() <= step; });
}

}  // namespace ringmaster::worker
