#pragma once

#include <set>
#include <string>
#include <vector>

#include "coordinator/core/core.h"

namespace ringmaster::simulation {

// A job is stopped for another one only if that waits and has a strictly higher priority: two jobs
// cannot stop each other in turns.
class Preemption {
 public:
  // After every event. What is wrong, in words.
  std::vector<std::string> Check(const coordinator::Core& core);
  // How many jobs were stopped.
  int count() const { return count_; }

 private:
  // By uid: those that stop.
  std::set<std::string> pausing_;
  int count_ = 0;
};

}  // namespace ringmaster::simulation
