#pragma once

#include <vector>

#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// Collectives between processes, on tensors of the transport's memory.
std::vector<Scenario> CollectiveScenarios();

}  // namespace ringmaster::worker
