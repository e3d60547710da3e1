#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

// Which probabilities of attention are dropped, for the products that the kernels over tiles do not
// make.
namespace ringmaster::attention::kernels {

// Factors of the probabilities of `groups` problems: 0 where a random word (philox.h, a pure
// function of the tokens of query and key) is below `dropped_below`, else `kept`.
struct DropoutProblem {
  int64_t groups = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  uint64_t dropped_below = 0;  // at most 2^32
  double kept = 1;
  // On the device, contiguous: [groups], and tokens [groups, queries] and [groups, keys].
  const int64_t* philox_keys = nullptr;
  const int64_t* query_tokens = nullptr;
  const int64_t* key_tokens = nullptr;
  // [groups, queries, keys], of one of these types; the other is null.
  float* factors = nullptr;
  double* double_factors = nullptr;
};

// Asynchronous and thread-safe. Empty, or what CUDA said.
std::string DropoutFactors(const DropoutProblem& problem, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
