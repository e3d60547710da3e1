#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/attention/kernels/device_array.h"

namespace ringmaster::attention::kernels {

// A GPU that comes to the power it may draw slows down, then swings for about so long until its
// clocks stay: by 15 % with passes that draw it all. Training runs longer.
constexpr double kSettleMilliseconds = 1000;
constexpr int kLeastWarmUps = 3;

// The median of ten runs, by events of the device, after those that settle it: as many as given, or
// as fill that time. `start` enqueues the work and returns an error or nothing.
inline double Milliseconds(const std::function<std::string()>& start,
                           std::optional<int> warm_ups = std::nullopt) {
  constexpr int kRuns = 10;
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  const auto run = [&] {
    Check(cudaEventRecord(begin));
    Check(start());
    Check(cudaEventRecord(end));
    Check(cudaEventSynchronize(end));
    float time = 0;
    Check(cudaEventElapsedTime(&time, begin, end));
    return time;
  };
  run();  // may wait for the host
  double settled = 0;
  for (int i = 1;
       warm_ups.has_value() ? i < *warm_ups : i < kLeastWarmUps || settled < kSettleMilliseconds;
       ++i) {
    settled += run();
  }
  std::vector<float> times(kRuns);
  std::generate(times.begin(), times.end(), run);
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace ringmaster::attention::kernels
