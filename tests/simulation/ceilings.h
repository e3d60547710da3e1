#pragma once

#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// Every job that has not ended is of a queue, and its priority is not above that queue's.
std::vector<std::string> CheckCeilings(const coordinator::Core& core, const Queues& queues);

}  // namespace ringmaster::simulation
