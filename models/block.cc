#include "models/block.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>

#include <cmath>

namespace ringmaster::models {
namespace {

constexpr double kNormEpsilon = 1e-5;

// Positions within a block's parameters.
enum Slot { kAttentionNorm = 0, kQuery = 2, kKey = 4, kValue = 6, kAfterValue = 8 };

at::Tensor Norm(absl::Span<const at::Tensor> parameters, int64_t slot, const at::Tensor& x) {
  const at::Tensor& weight = parameters[slot];
  return at::layer_norm(x, weight.sizes(), weight, parameters[slot + 1], kNormEpsilon);
}

at::Tensor Linear(absl::Span<const at::Tensor> parameters, int64_t slot, const at::Tensor& x) {
  return at::linear(x, parameters[slot], parameters[slot + 1]);
}

}  // namespace

int64_t BlockParameters(const LongNetConfig& config) { return config.sub_ln ? 20 : 16; }

QueryKeyValue ProjectAttention(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                               const RotaryTables& rotary, const at::Tensor& x) {
  const at::Tensor normed = Norm(parameters, kAttentionNorm, x);
  const auto project = [&](Slot slot, int64_t heads) {
    return Linear(parameters, slot, normed).view({x.size(0), x.size(1), heads, config.head_dim()});
  };
  return {Rotate(project(kQuery, config.heads), rotary.query_cos, rotary.query_sin),
          Rotate(project(kKey, config.kv_heads), rotary.key_cos, rotary.key_sin),
          project(kValue, config.kv_heads)};
}

at::Tensor FinishBlock(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                       const at::Tensor& x, const at::Tensor& attended, const Dropout& dropout,
                       int64_t layer) {
  int64_t slot = kAfterValue;
  const auto next = [&slot] {
    slot += 2;
    return slot - 2;
  };
  at::Tensor inner = attended.reshape(x.sizes());
  if (config.sub_ln) {
    inner = Norm(parameters, next(), inner);
  }
  const at::Tensor middle = x + dropout.Apply(Linear(parameters, next(), inner), 2 * layer + 1);
  inner = Norm(parameters, next(), middle);
  inner = at::gelu(Linear(parameters, next(), inner));
  if (config.sub_ln) {
    inner = Norm(parameters, next(), inner);
  }
  return middle + dropout.Apply(Linear(parameters, next(), inner), 2 * layer + 2);
}

// The factor keeps the residual stream's first value comparable with what blocks add, while the
// same table, as output projection, starts with small logits.
at::Tensor Embed(const at::Tensor& table, const at::Tensor& tokens) {
  return at::embedding(table, tokens) * std::sqrt(static_cast<double>(table.size(1)));
}

// Summed row by row in the type that it is given: thousands of rows of one byte are too much for
// bf16.
at::Tensor EmbedBackward(const at::Tensor& gradient, const at::Tensor& tokens, int64_t vocab_size) {
  const at::Tensor rows =
      gradient.scalar_type() == at::kDouble ? gradient : gradient.to(at::kFloat);
  return at::embedding_dense_backward(rows * std::sqrt(static_cast<double>(gradient.size(-1))),
                                      tokens, vocab_size,
                                      /*padding_idx=*/-1, /*scale_grad_by_freq=*/false);
}

at::Tensor OutputLogits(const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                        const at::Tensor& output, const at::Tensor& x) {
  return at::linear(at::layer_norm(x, norm_weight.sizes(), norm_weight, norm_bias, kNormEpsilon),
                    output);
}

}  // namespace ringmaster::models
