#pragma once

#include <set>
#include <string>
#include <vector>

#include "coordinator/core/core.h"

namespace ringmaster::simulation {

// Jobs wait in the order of priority, and of age within a queue, and no job is placed from it while
// one before it could have had the same workers.
class QueueOrder {
 public:
  // After every event. What is wrong, in words.
  std::vector<std::string> Check(const coordinator::Core& core);

 private:
  // By uid: the jobs that were not in the queue.
  std::set<std::string> elsewhere_;
};

}  // namespace ringmaster::simulation
