#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// The jobs of a queue hold more workers than its quota only where it was lowered: then none is
// placed.
class HeldWorkers {
 public:
  // After every event. What is wrong, in words.
  std::vector<std::string> Check(const coordinator::Core& core, const Queues& queues);

 private:
  // By uid: those that held workers.
  std::set<std::string> holders_;
};

}  // namespace ringmaster::simulation
