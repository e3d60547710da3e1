#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"

// Jobs that run, and those of them that are told to stop.
namespace ringmaster::coordinator {

using Names = std::vector<std::string>;

// With workers of its own, of which `first` is the first's name.
inline void RunJob(CoreDriver& d, const std::string& id, int32_t priority, int ring, char first) {
  for (int i = 0; i < ring; ++i) {
    const char name = static_cast<char>(first + i);
    d.Hello(std::string(1, name), name);
  }
  ASSERT_TRUE(Submit(d, id, priority, ring).ok());
  d.Form(id);
  d.Step(id, 1);
  ASSERT_EQ(d.StateOf(id), "RUNNING");
}

inline Names Pausing(CoreDriver& d) {
  Names names;
  for (const v1::TrainingJob* job : d.Core().Jobs("projects/-")) {
    if (job->status().state() != v1::TrainingJobStatus::PAUSING) continue;
    names.push_back(job->name().substr(job->name().rfind('/') + 1));
  }
  return names;
}

inline CoreOptions WithMinRuntime() {
  CoreOptions options = CoreDriver::Options();
  options.preemption_min_runtime = absl::Minutes(1);
  return options;
}

}  // namespace ringmaster::coordinator
