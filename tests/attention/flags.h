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

// The flags that are left when gtest has taken its own. False, with a line on stderr, when one is
// unknown or the device cannot be had.
bool ParseCaseFlags(int argc, char** argv, CaseFlags* flags);

}  // namespace ringmaster::attention
