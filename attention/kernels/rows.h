#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "attention/kernels/element.h"

// Rows of keys and values that travel between ranks, and their gradients that come back, at the
// speed of memory. Asynchronous; errors are the texts of CUDA. Thread-safe. No torch.
//
// A message is [rows, 2, batch, head_dim], contiguous: of each row the key and the value of every
// sequence of the batch. A place is a token x heads + a head.
namespace ringmaster::attention::kernels {

// [batch, tokens, heads, head_dim], strides in elements, 1 in the last dimension.
template <typename T>
struct Strided {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// Row i of the message becomes the key and the value at places[i].
struct PackProblem {
  int64_t batch = 1;
  int heads = 1;
  int head_dim = 0;  // 1 to 256
  int64_t rows = 0;
  const uint32_t* places = nullptr;  // [rows]
  Strided<const uint16_t> k, v;      // two-byte numbers of any kind
  uint16_t* message = nullptr;
};

// Empty, or what CUDA said.
std::string PackRows(const PackProblem& problem, cudaStream_t stream);

// To the sums of place places[i] are added rows[begin[i]] .. rows[begin[i + 1] - 1], in this order:
// the same bits every time. Row numbers below `kept_rows` are of `kept`, the others, less
// kept_rows, of `returned`.
struct ReturnedRowsProblem {
  int64_t batch = 1;
  int heads = 1;
  int head_dim = 0;  // 1 to 256
  int64_t place_count = 0;
  const uint32_t* places = nullptr;  // each once
  const uint32_t* begin = nullptr;   // [place_count + 1]
  const uint32_t* rows = nullptr;
  uint32_t kept_rows = 0;
  const float* kept = nullptr;
  const float* returned = nullptr;
  Strided<float> dk, dv;
  // Where the totals go, rounded, instead of to dk and dv; null data: they stay in dk and dv.
  ElementType type = ElementType::kBf16;
  Strided<uint16_t> rounded_dk, rounded_dv;
};

// Empty, or what CUDA said.
std::string AddReturnedRows(const ReturnedRowsProblem& problem, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
