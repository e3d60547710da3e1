#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/attention/kernels/device_array.h"

namespace ringmaster::attention::kernels {

// The median of ten runs after three, by events of the device. `start` enqueues the work and
// returns an error or nothing.
inline double Milliseconds(const std::function<std::string()>& start) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    Check(cudaEventRecord(begin));
    Check(start());
    Check(cudaEventRecord(end));
    Check(cudaEventSynchronize(end));
    float time = 0;
    Check(cudaEventElapsedTime(&time, begin, end));
    if (i >= 3) {
      times.push_back(time);
    }
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace ringmaster::attention::kernels
