#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace ringmaster::worker {

// A fingerprint of a tensor's bits where they lie: reading a large state from a device to hash it
// on the host would take seconds, in the middle of a recovery. For each block of 2^20 32-bit words
// the sum of word * multiplier modulo 2^64, with a fixed odd multiplier for each place, so that any
// change of one word changes its sum. `flat` is 1-D and contiguous, of fp32 or fp64.
std::vector<int64_t> WordSums(const at::Tensor& flat);

// XXH3-64 over the tensors, in order, and `step`: over their bits on the CPU, over their WordSums
// on other devices. Comparable between devices of one type.
uint64_t StateDigest(const std::vector<at::Tensor>& tensors, int64_t step);

}  // namespace ringmaster::worker
