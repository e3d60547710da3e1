#pragma once

#include <set>
#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// No queue starves: none of its jobs is passed over for one of the same priority of a queue that
// holds more workers for its weight, where the workers would have done for it.
class FairShares {
 public:
  // After every event. What is wrong, in words.
  std::vector<std::string> Check(const coordinator::Core& core, const Queues& queues);

 private:
  // By uid: the jobs that were not in a queue.
  std::set<std::string> elsewhere_;
};

}  // namespace ringmaster::simulation
