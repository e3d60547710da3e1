#pragma once

#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// A job waits for its queue's quota exactly when that holds it back: together with what its queue
// holds and what jobs of the queue before it are to get, it would be too much.
std::vector<std::string> CheckQuotaReasons(const coordinator::Core& core, const Queues& queues);

}  // namespace ringmaster::simulation
