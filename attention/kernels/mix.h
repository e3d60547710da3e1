#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "attention/kernels/element.h"
#include "attention/kernels/tile_list.h"

// What comes before and after the tiles of queries: sums in fp32. Asynchronous; errors are the
// texts of CUDA. Thread-safe. No torch.
namespace ringmaster::attention::kernels {

// Softmaxes over parts of the keys, merged into one over all of them: with the logarithms s_i of
// their denominators, out = sum_i exp(s_i - lse) out_i, lse = log sum_i exp(s_i).
struct MixProblem {
  ElementType type = ElementType::kBf16;  // of out
  int head_dim = 0;                       // 64 or 128
  int64_t batch = 1;
  // [batch, parts, head_dim] and [batch, parts].
  const float* part_outs = nullptr;
  const float* part_lses = nullptr;
  int64_t parts = 0;
  // Place places[i], a token's head, merges parts begin[i] .. begin[i + 1], in this order: the same
  // bits each time. The others are left as they are. NaN goes on.
  int64_t mixed_places = 0;
  const uint32_t* places = nullptr;
  const uint32_t* begin = nullptr;
  // [batch, all_places, head_dim] and [batch, all_places]; zeros and -inf where no part saw a key.
  int64_t all_places = 0;
  void* out = nullptr;
  float* lse = nullptr;
  // What the rounding of `out` leaves over (rest.h), laid out as it; null: nobody wants it.
  int8_t* rest = nullptr;
};

// Empty, or what CUDA said. Pointers to numbers are multiples of 16 bytes.
std::string Mix(const MixProblem& problem, cudaStream_t stream);

// Makes BackwardProblem::starts. Of `tokens` tokens in all, of `heads` heads: dout and out,
// contiguous, out with its rest, and lse [tokens, heads]; +-inf takes a query out.
struct StartsProblem {
  ElementType type = ElementType::kBf16;
  int head_dim = 0;  // 64 or 128
  int64_t tokens = 0;
  int64_t heads = 0;
  float scale = 1;
  const void* dout = nullptr;
  const void* out = nullptr;
  const int8_t* rest = nullptr;
  const float* lse = nullptr;
  float* starts = nullptr;
};

// Empty, or what CUDA said.
std::string MakeStarts(const StartsProblem& problem, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
