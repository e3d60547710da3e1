#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/types/span.h"
#include "models/longnet_config.h"

namespace ringmaster::models {

// Rotations for n tokens, [n, 1, head_dim / 2] each, in fp32 (fp64 for fp64 models). Channel m is
// paired with channel m + head_dim / 2 and turns by position * 10000^(-2m / head_dim). Undefined
// without positions.
//
// XPOS multiplies queries by zeta_m^e and divides keys by it, with e = (position in the longest
// segment - its middle) / 512: only differences within a segment matter, and counted this way the
// factors stay finite for any number of tokens. Not to be written to: without XPOS the keys' tables
// are the queries'.
struct RotaryTables {
  at::Tensor query_cos;
  at::Tensor query_sin;
  at::Tensor key_cos;
  at::Tensor key_sin;
};

// Angles are computed in fp64 from the 64-bit global positions. `options` names device and dtype of
// the model's computation.
RotaryTables MakeRotaryTables(const LongNetConfig& config, absl::Span<const int64_t> positions,
                              const at::TensorOptions& options);

// x [B, n, H, head_dim] turned by a table's cosines and sines, differentiable in x; accumulates in
// the table's dtype, rounds once. Returns x itself for undefined tables.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace ringmaster::models
