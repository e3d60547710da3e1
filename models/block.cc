#include "models/block.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include <cmath>

#include "models/layer_norm.h"

namespace ringmaster::models {
namespace {

// Weights and biases of up, with sub_ln sub_norm, and down.
at::Tensor FeedForward(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                       const at::Tensor& x) {
  at::Tensor inner = at::gelu(at::linear(x, parameters[0], parameters[1]));
  if (config.sub_ln) {
    inner = LayerNorm(inner, parameters[2], parameters[3]);
  }
  const int64_t down = config.sub_ln ? 4 : 2;
  return at::linear(inner, parameters[down], parameters[down + 1]);
}

}  // namespace

int64_t BlockParameters(const LongNetConfig& config) {
  return 2 + MultiheadAttentionParameters(config) + 2 + (config.sub_ln ? 6 : 4);
}

at::Tensor DecoderBlock(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                        const RotaryTables& rotary, const at::Tensor& x, AttentionOperator attend,
                        const Dropout& dropout, int64_t layer) {
  const int64_t in_attention = MultiheadAttentionParameters(config);
  const at::Tensor attended =
      MultiheadAttention(config, parameters.subspan(2, in_attention), rotary,
                         LayerNorm(x, parameters[0], parameters[1]), attend);
  const at::Tensor middle = x + dropout.Apply(attended, 2 * layer + 1);
  const absl::Span<const at::Tensor> rest = parameters.subspan(2 + in_attention);
  const at::Tensor fed = FeedForward(config, rest.subspan(2), LayerNorm(middle, rest[0], rest[1]));
  return middle + dropout.Apply(fed, 2 * layer + 2);
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
  return at::linear(LayerNorm(x, norm_weight, norm_bias), output);
}

}  // namespace ringmaster::models
