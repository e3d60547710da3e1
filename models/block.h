#pragma once

#include <ATen/core/Tensor.h>

#include "absl/types/span.h"
#include "models/dropout.h"
#include "models/longnet_config.h"
#include "models/positions.h"

namespace ringmaster::models {

// The pieces of the decoder, as differentiable functions of parameters and input. `parameters` are
// a block's, in the order of ParameterSpecs: BlockParameters(config) of them. B sequences of n
// tokens.

int64_t BlockParameters(const LongNetConfig& config);

struct QueryKeyValue {
  at::Tensor query;  // [B, n, heads, head_dim], turned by position
  at::Tensor key;    // [B, n, kv_heads, head_dim], turned by position
  at::Tensor value;  // [B, n, kv_heads, head_dim]
};

// x [B, n, dim] -> what attention takes.
QueryKeyValue ProjectAttention(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                               const RotaryTables& rotary, const at::Tensor& x);

// The rest of block `layer`: x [B, n, dim] as given to ProjectAttention, attended [B, n, heads,
// head_dim] -> [B, n, dim]. What attention and feed-forward add to x passes through `dropout`,
// whose place 0 is the embedding's.
at::Tensor FinishBlock(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                       const at::Tensor& x, const at::Tensor& attended, const Dropout& dropout = {},
                       int64_t layer = 0);

// tokens [...] -> [..., dim].
at::Tensor Embed(const at::Tensor& table, const at::Tensor& tokens);
// The gradient of `table` for that of Embed's result, in fp32 at least.
at::Tensor EmbedBackward(const at::Tensor& gradient, const at::Tensor& tokens, int64_t vocab_size);

// Final norm and output projection: x [rows, dim] -> [rows, vocab].
at::Tensor OutputLogits(const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                        const at::Tensor& output, const at::Tensor& x);

}  // namespace ringmaster::models
