#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "attention/kernels/element.h"

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
  // Place i, a token's head, merges parts merge_begin[i] .. merge_begin[i + 1], in this order: the
  // same bits each time. A place without parts is left as it is. NaN goes on.
  int64_t places = 0;
  const uint32_t* merge_begin = nullptr;
  // [batch, places, head_dim] and [batch, places]; zeros and -inf where no part saw a key.
  void* out = nullptr;
  float* lse = nullptr;
  // What the rounding of `out` leaves over (rest.h), laid out as it; null: nobody wants it.
  int8_t* rest = nullptr;
};

// Empty, or what CUDA said. Pointers to numbers are multiples of 16 bytes.
std::string Mix(const MixProblem& problem, cudaStream_t stream);

// dots[i] = sum over d of a[i][d] * b[i][d], of `rows` rows of head_dim (64 or 128) elements, b
// with its rest: the delta of BackwardProblem out of dout and out. Empty, or what CUDA said.
std::string RowDots(ElementType type, int head_dim, int64_t rows, const void* a, const void* b,
                    const int8_t* rest, float* dots, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
