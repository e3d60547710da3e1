#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace ringmaster::attention {

// Of tests of random cases: --seed=S --cases=C (--seed=S --cases=1 repeats one) --device=cpu|cuda.
struct CaseFlags {
  uint64_t seed = 1;
  int cases = 0;
  at::Device device = at::kCPU;
};

// The main() of a program of such tests. 2, with a line on stderr, when a flag that gtest leaves is
// unknown or the device cannot be had.
int RunTestsOfCases(int argc, char** argv, CaseFlags* flags);

}  // namespace ringmaster::attention
