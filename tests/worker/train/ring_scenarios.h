#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "absl/time/time.h"
#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// What a ring of processes computes is what one rank computes, over the transport that a worker
// uses. Scenarios with "Short" in their name take seconds on a CPU, the others want a GPU, or
// minutes.
//
// Attention forward and backward against the dense oracle, and what was sent against the plan.
std::vector<Scenario> RingAttentionScenarios();
// Twenty optimizer steps against one rank, both measured from fp64.
std::vector<Scenario> RingTrainingScenarios();

// Ranks wait in the ring while others compute with few cores what the case is.
constexpr absl::Duration kRingDeadline = absl::Seconds(300);

inline at::Device DeviceOf(const Rank& rank) {
  return rank.transport() == "nccl" ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

}  // namespace ringmaster::worker
