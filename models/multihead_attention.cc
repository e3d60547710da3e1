#include "models/multihead_attention.h"

#include <ATen/ops/linear.h>

#include "models/layer_norm.h"

namespace ringmaster::models {

int64_t MultiheadAttentionParameters(const LongNetConfig& config) { return config.sub_ln ? 10 : 8; }

at::Tensor MultiheadAttention(const LongNetConfig& config, absl::Span<const at::Tensor> parameters,
                              const RotaryTables& rotary, const at::Tensor& x,
                              AttentionOperator attend) {
  const auto project = [&](int64_t weight, int64_t heads) {
    return at::linear(x, parameters[weight], parameters[weight + 1])
        .view({x.size(0), x.size(1), heads, config.head_dim()});
  };
  at::Tensor attended =
      attend({Rotate(project(0, config.heads), rotary.query_cos, rotary.query_sin),
              Rotate(project(2, config.kv_heads), rotary.key_cos, rotary.key_sin),
              project(4, config.kv_heads)})
          .reshape(x.sizes());
  if (config.sub_ln) {
    attended = LayerNorm(attended, parameters[6], parameters[7]);
  }
  const int64_t output = config.sub_ln ? 8 : 6;
  return at::linear(attended, parameters[output], parameters[output + 1]);
}

}  // namespace ringmaster::models
