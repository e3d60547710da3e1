#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "tests/attention/kernels/device_array.h"

namespace ringmaster::attention::kernels {

// Empty when the first device runs the kernels; else why it does not.
inline std::string WhyNoHopper() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    return "no CUDA device";
  }
  int major = 0;
  Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  return major == 9
             ? ""
             : "the kernels are for Hopper (9.x), the device is of " + std::to_string(major) + ".x";
}

}  // namespace ringmaster::attention::kernels
