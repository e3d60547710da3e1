#pragma once

#include <vector>

#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// What only shows when each rank is a process: what it holds, and what happens when it stands
// still.
std::vector<Scenario> ProcessScenarios();

}  // namespace ringmaster::worker
