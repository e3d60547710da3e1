#pragma once

#include <ATen/core/Tensor.h>

#include "absl/types/span.h"
#include "models/dropout.h"
#include "models/longnet_config.h"
#include "models/multihead_attention.h"
#include "models/positions.h"

namespace ringmaster::models {

// The pieces of the decoder, as differentiable functions of parameters and input. B sequences of n
// tokens.

// How many parameters a block has.
int64_t BlockParameters(const LongNetConfig& config);

// Block `layer`, pre-LN: attention, then a GELU feed-forward block, each added to x [B, n, dim].
// What they add passes through `dropout`, whose place 0 is the embedding's. `parameters` are the
// block's, in the order of ParameterSpecs.
at::Tensor DecoderBlock(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                        const RotaryTables& rotary, const at::Tensor& x, AttentionOperator attend,
                        const Dropout& dropout = {}, int64_t layer = 0);

// tokens [...] -> [..., dim].
at::Tensor Embed(const at::Tensor& table, const at::Tensor& tokens);
// The gradient of `table` for that of Embed's result, in fp32 at least.
at::Tensor EmbedBackward(const at::Tensor& gradient, const at::Tensor& tokens, int64_t vocab_size);

// Final norm and output projection: x [rows, dim] -> [rows, vocab].
at::Tensor OutputLogits(const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                        const at::Tensor& output, const at::Tensor& x);

}  // namespace ringmaster::models
