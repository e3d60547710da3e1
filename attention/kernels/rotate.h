#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "attention/kernels/element.h"

// Rotary positions (RoFormer, arXiv 2104.09864; with scaled tables XPOS, 2212.10554).
namespace ringmaster::attention::kernels {

// Columns m and half + m of each row, x1 and x2, become x1 cos - direction x2 sin and
// x2 cos + direction x1 sin, in fp32, rounded once.
struct RotateProblem {
  ElementType type = ElementType::kBf16;
  int64_t batch = 0;
  int64_t tokens = 0;
  int heads = 0;
  int half = 0;         // of the head dimension
  float direction = 1;  // or -1, the transpose
  // On the device, contiguous: [batch, tokens, heads, 2 * half], and tables [tokens, half].
  const void* x = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  void* out = nullptr;  // as x, and not x
};

// Asynchronous and thread-safe. Empty, or what CUDA said.
std::string Rotate(const RotateProblem& problem, cudaStream_t stream);

}  // namespace ringmaster::attention::kernels
