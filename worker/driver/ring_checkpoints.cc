#include "worker/driver/ring_checkpoints.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace ringmaster::worker {
namespace {

// A slow disk may hold the trainer up for so long before a checkpoint is given up.
constexpr absl::Duration kPatienceMax = absl::Seconds(10);
constexpr absl::Duration kLastShardPatience = absl::Minutes(10);

}  // namespace

void RingCheckpoints::AfterStep() {
  const int64_t interval = options_.form->spec().checkpoint().interval_steps();
  if (interval > 0 && options_.held->state().step() % interval == 0) {
    Begin(Patience());
  }
}

std::string RingCheckpoints::AfterLastStep() {
  Begin(kLastShardPatience);
  if (!options_.writer->AwaitIdle(kLastShardPatience, options_.cancelled)) {
    return absl::StrCat("the last shard is not written after ",
                        absl::FormatDuration(kLastShardPatience));
  }
  const std::lock_guard lock(mutex_);
  return error_;
}

void RingCheckpoints::Settle() { options_.writer->AwaitIdle(Patience(), options_.cancelled); }

void RingCheckpoints::OnShard(const v1::ShardWritten& report) {
  const std::lock_guard lock(mutex_);
  error_ = report.error();
}

void RingCheckpoints::Begin(absl::Duration patience) {
  const ShardIdentity identity{.ring = options_.form->ring(),
                               .world_size = options_.held->config().world_size(),
                               .incarnation = options_.incarnation,
                               .step = options_.held->state().step(),
                               .job_directory = options_.form->directory()};
  options_.writer->AwaitIdle(patience, options_.cancelled);
  if (options_.cancelled()) {
    return;
  }
  const absl::Status begun =
      options_.writer->Begin(identity, options_.held->state().NamedTensors());
  if (begun.ok()) {
    return;
  }
  v1::ShardWritten report;
  *report.mutable_ring() = identity.ring;
  report.set_step(identity.step);
  report.set_error(std::string(begun.message()));
  SPDLOG_ERROR("checkpoint of step {} failed: {}", identity.step, begun.ToString());
  OnShard(report);
  options_.failed(std::move(report));
}

// A checkpoint that is given up costs less than a ring that breaks.
absl::Duration RingCheckpoints::Patience() const {
  return std::min(kPatienceMax, options_.hop_deadline / 2);
}

}  // namespace ringmaster::worker
