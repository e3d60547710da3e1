#pragma once

#include <vector>

#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// One suite for every transport: what attention and training rely on, and how each way of breaking
// is told.
std::vector<Scenario> ConformanceScenarios();

// Its parts beside the messages of a ring that works: who may be in a ring, and what ends one.
std::vector<Scenario> FormingScenarios();
std::vector<Scenario> BreakingScenarios();

}  // namespace ringmaster::worker
