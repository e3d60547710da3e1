#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/attention/kernels/device_array.h"
#include "tests/attention/kernels/elements.h"

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

// For each type and head size; skipped where there is no Hopper.
class HopperTest : public testing::TestWithParam<ElementCase> {
 protected:
  void SetUp() override {
    const std::string why = WhyNoHopper();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};
inline auto AllElements() {
  return testing::Values(ElementCase{ElementType::kBf16, 64}, ElementCase{ElementType::kBf16, 128},
                         ElementCase{ElementType::kFp16, 64}, ElementCase{ElementType::kFp16, 128});
}

}  // namespace ringmaster::attention::kernels
