#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "models/longnet_config.h"
#include "models/positions.h"

namespace ringmaster::models {

struct QueryKeyValue {
  at::Tensor query;  // [B, n, heads, head_dim], turned by position
  at::Tensor key;    // [B, n, kv_heads, head_dim], turned by position
  at::Tensor value;  // [B, n, kv_heads, head_dim]
};

// Gives [B, n, heads, head_dim]: attention over the whole sequence, of which these are one rank's
// tokens, or over what a cache holds.
using AttentionOperator = absl::FunctionRef<at::Tensor(const QueryKeyValue&)>;

// How many parameters MultiheadAttention takes: weights and biases of query, key, value, with
// sub_ln sub_norm, and output.
int64_t MultiheadAttentionParameters(const LongNetConfig& config);

// LongNet's attention layer, x [B, n, dim] -> [B, n, dim]: projections with biases; rotary or XPOS
// by the global positions of `rotary`, before any branch selects rows; `attend`; with sub_ln a
// LayerNorm over all heads of what it gave; the output projection. Differentiable in `parameters`,
// `x` and as far as `attend` is. `parameters` are layers.{i}.attention.* in the order of
// ParameterSpecs; their initial gain is given there.
at::Tensor MultiheadAttention(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                              const RotaryTables& rotary, const at::Tensor& x,
                              AttentionOperator attend);

}  // namespace ringmaster::models
