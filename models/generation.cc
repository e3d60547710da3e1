#include "models/generation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <numeric>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "attention/attend.h"
#include "attention/decode_attention.h"
#include "models/block.h"
#include "models/positions.h"

namespace ringmaster::models {
namespace {

// [1, n] on the parameters' device.
at::Tensor AsTensor(absl::Span<const int64_t> tokens, const at::TensorOptions& options) {
  return at::tensor(at::ArrayRef<int64_t>(tokens.data(), tokens.size()), at::kLong)
      .to(options.device())
      .unsqueeze(0);
}

// What the first tokens of a sequence see of each other.
attention::AttentionPattern FirstTokens(attention::AttentionPattern pattern, int64_t tokens) {
  if (auto* blocks = std::get_if<attention::BlockSparseAttentionOptions>(&pattern)) {
    blocks->mask = blocks->mask.FirstTokens(tokens);
  }
  return pattern;
}

}  // namespace

Generator::Generator(const LongNet& model, absl::Span<const at::Tensor> parameters,
                     int64_t max_tokens, int64_t mask_tokens)
    : model_(model),
      parameters_(parameters.begin(), parameters.end()),
      options_(parameters_[0].options()),
      max_tokens_(max_tokens) {
  const LongNetConfig& config = model_.config();
  const auto pattern = model_.Pattern(mask_tokens);
  TORCH_CHECK_VALUE(pattern.ok(), std::string(pattern.status().message()));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    caches_.emplace_back(*pattern, /*batch=*/1, config.kv_heads, config.head_dim(), max_tokens,
                         options_);
  }
}

absl::Span<const at::Tensor> Generator::Block(int64_t layer) const {
  const int64_t count = BlockParameters(model_.config());
  return absl::MakeConstSpan(parameters_).subspan(1 + layer * count, count);
}

at::Tensor Generator::LastLogits(const at::Tensor& x) const {
  const at::Tensor logits =
      model_.OutputOf(parameters_, x.select(0, 0).narrow(0, x.size(1) - 1, 1));
  const at::ScalarType exact = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return logits.squeeze(0).to(at::kCPU, exact);
}

void Generator::CheckUsable() const {
  // The first layer's cache is the first to grow.
  TORCH_CHECK_VALUE(caches_.front().tokens() == tokens_,
                    "a token failed half-way; the generator is of no use since");
}

at::Tensor Generator::Prefill(absl::Span<const int64_t> prompt) {
  const at::NoGradGuard no_grad;
  CheckUsable();
  const LongNetConfig& config = model_.config();
  const auto count = static_cast<int64_t>(prompt.size());
  TORCH_CHECK_VALUE(tokens_ == 0 && count >= 1 && count <= max_tokens_, "a prompt of ", count,
                    " tokens; 1 to ", max_tokens_, " are possible, once");
  std::vector<int64_t> positions(prompt.size());
  std::iota(positions.begin(), positions.end(), 0);
  const RotaryTables rotary = MakeRotaryTables(config, positions, options_);
  const attention::AttentionPattern pattern = FirstTokens(caches_.front().pattern(), count);
  at::Tensor x = Embed(parameters_[0], AsTensor(prompt, options_));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    x = DecoderBlock(config, Block(layer), rotary, x, [&](const QueryKeyValue& qkv) {
      caches_[layer].Append(qkv.key, qkv.value);
      return attention::Attend(qkv.query, qkv.key, qkv.value,
                               attention::MakeCall(qkv.query, qkv.key, qkv.value, pattern))
          .out;
    });
  }
  at::Tensor logits = LastLogits(x);
  tokens_ = count;
  return logits;
}

at::Tensor Generator::Next(int64_t token) {
  const at::NoGradGuard no_grad;
  CheckUsable();
  const LongNetConfig& config = model_.config();
  TORCH_CHECK_VALUE(tokens_ < max_tokens_, "token ", tokens_, " of at most ", max_tokens_);
  const int64_t position[] = {tokens_};
  const RotaryTables rotary = MakeRotaryTables(config, position, options_);
  at::Tensor x = Embed(parameters_[0], AsTensor({token}, options_));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    x = DecoderBlock(config, Block(layer), rotary, x, [&](const QueryKeyValue& qkv) {
      caches_[layer].Append(qkv.key, qkv.value);
      return attention::DecodeAttention(qkv.query, caches_[layer]).out;
    });
  }
  at::Tensor logits = LastLogits(x);
  ++tokens_;
  return logits;
}

int64_t SampleToken(const at::Tensor& logits, double temperature, double uniform) {
  if (temperature <= 0) {
    return logits.argmax().item<int64_t>();
  }
  // The maximum first: however small the temperature, nothing overflows.
  const at::Tensor shifted = logits.to(at::kDouble) - logits.max().to(at::kDouble);
  const at::Tensor sums = at::softmax(shifted / temperature, -1).cumsum(-1);
  const auto values = sums.accessor<double, 1>();
  int64_t token = 0;
  while (token + 1 < values.size(0) && values[token] <= uniform * values[values.size(0) - 1]) {
    ++token;
  }
  return token;
}

}  // namespace ringmaster::models
