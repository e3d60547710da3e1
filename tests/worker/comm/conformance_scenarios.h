#pragma once

#include <vector>

#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// One suite for every transport: what attention and training rely on, and how each way of breaking
// is told.
std::vector<Scenario> ConformanceScenarios();

}  // namespace ringmaster::worker
