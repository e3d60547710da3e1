#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/core/core.h"

namespace ringmaster::simulation {

// A job is stopped for another one only if that is switched on, and the other one waits and has a
// strictly higher priority: two jobs cannot stop each other in turns. Nor before it has run for
// `min_runtime` since it was placed.
class Preemption {
 public:
  void Configure(bool on, absl::Duration min_runtime) {
    on_ = on;
    min_runtime_ = min_runtime;
  }
  // After every event. What is wrong, in words.
  std::vector<std::string> Check(const coordinator::Core& core);
  // How many jobs were stopped.
  int count() const { return count_; }

 private:
  // By uid: those that stop.
  std::set<std::string> pausing_;
  // When jobs were first seen to run since they were placed.
  std::map<std::string, absl::Time> run_since_;
  bool on_ = false;
  absl::Duration min_runtime_;
  int count_ = 0;
};

}  // namespace ringmaster::simulation
