#include "models/generation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attention/dilated_attention.h"
#include "attention/plan/selection.h"
#include "models/block.h"

namespace ringmaster::models {
namespace {

at::Tensor IndexTensor(std::vector<int64_t>& values, const at::TensorOptions& options) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kLong)
      .to(options.device(), at::kLong, /*non_blocking=*/false, /*copy=*/true);
}

int64_t Capacity(const LongNetConfig& config, int64_t max_tokens) {
  int64_t longest = 1;
  for (const attention::Branch& branch : config.attention.branches) {
    longest = std::max(longest, branch.segment_length);
  }
  return std::min(longest, max_tokens);
}

}  // namespace

Generator::Generator(const LongNet& model, absl::Span<const at::Tensor> parameters,
                     int64_t max_tokens)
    : model_(model),
      parameters_(parameters.begin(), parameters.end()),
      options_(parameters_[0].options()),
      max_tokens_(max_tokens),
      capacity_(Capacity(model.config(), max_tokens)) {
  const LongNetConfig& config = model_.config();
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto rows = [&] {
      return at::zeros({capacity_, config.kv_heads, config.head_dim()}, options_);
    };
    caches_.push_back({rows(), rows()});
  }
}

absl::Span<const at::Tensor> Generator::Block(int64_t layer) const {
  const int64_t count = BlockParameters(model_.config());
  return absl::MakeConstSpan(parameters_).subspan(1 + layer * count, count);
}

void Generator::Keep(LayerCache& cache, const at::Tensor& key, const at::Tensor& value,
                     int64_t first) {
  const int64_t count = key.size(0);
  const int64_t kept = std::min(count, capacity_);
  std::vector<int64_t> slots(kept);
  for (int64_t i = 0; i < kept; ++i) {
    slots[i] = (first + count - kept + i) % capacity_;
  }
  const at::Tensor index = IndexTensor(slots, options_);
  cache.key.index_copy_(0, index, key.narrow(0, count - kept, kept));
  cache.value.index_copy_(0, index, value.narrow(0, count - kept, kept));
}

// query [heads, head_dim] of token tokens_, whose own row is in the cache already -> the same
// shape. Branches are merged by their softmax denominators.
at::Tensor Generator::Attend(const LayerCache& cache, const at::Tensor& query) const {
  const LongNetConfig& config = model_.config();
  const double scale = config.attention.scale.value_or(1 / std::sqrt(config.head_dim()));
  const at::ScalarType exact = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor scaled = query.to(exact) * scale;
  at::Tensor out = at::zeros_like(scaled);
  at::Tensor lse =
      at::full({config.heads}, -std::numeric_limits<double>::infinity(), scaled.options());
  for (const attention::Branch& branch : config.attention.branches) {
    const int64_t begin = tokens_ - tokens_ % branch.segment_length;
    const int64_t rate = branch.dilation_rate;
    const int64_t offset = (tokens_ - begin) % rate;
    std::vector<int64_t> heads;
    std::vector<int64_t> kv_heads;
    for (int64_t head = 0; head < config.heads; ++head) {
      if (attention::HeadOffset(config.attention.offset_mode, head, config.heads, rate) == offset) {
        heads.push_back(head);
        kv_heads.push_back(head / (config.heads / config.kv_heads));
      }
    }
    if (heads.empty()) {
      continue;
    }
    std::vector<int64_t> slots;
    for (int64_t token = begin + offset; token <= tokens_; token += rate) {
      slots.push_back(token % capacity_);
    }
    const at::Tensor rows = IndexTensor(slots, options_);
    const at::Tensor chosen = IndexTensor(heads, options_);
    const at::Tensor kv = IndexTensor(kv_heads, options_);
    const auto gather = [&](const at::Tensor& kept) {  // [heads, rows, head_dim]
      return kept.index_select(0, rows).index_select(1, kv).transpose(0, 1).to(exact);
    };
    const at::Tensor scores =
        at::matmul(gather(cache.key), scaled.index_select(0, chosen).unsqueeze(-1))
            .squeeze(-1);  // [heads, rows]
    const at::Tensor found =
        at::matmul(at::softmax(scores, -1).unsqueeze(1), gather(cache.value)).squeeze(1);
    const at::Tensor found_lse = at::logsumexp(scores, -1);
    const at::Tensor old_lse = lse.index_select(0, chosen);
    const at::Tensor new_lse = at::logaddexp(old_lse, found_lse);
    const at::Tensor merged =
        out.index_select(0, chosen) * (old_lse - new_lse).exp().unsqueeze(-1) +
        found * (found_lse - new_lse).exp().unsqueeze(-1);
    out.index_copy_(0, chosen, merged);
    lse.index_copy_(0, chosen, new_lse);
  }
  return out.to(query.scalar_type());
}

at::Tensor Generator::LastLogits(const at::Tensor& x) const {
  const at::Tensor logits =
      model_.OutputOf(parameters_, x.select(0, 0).narrow(0, x.size(1) - 1, 1));
  const at::ScalarType exact = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return logits.squeeze(0).to(at::kCPU, exact);
}

at::Tensor Generator::Prefill(absl::Span<const int64_t> prompt) {
  const at::NoGradGuard no_grad;
  const LongNetConfig& config = model_.config();
  const auto count = static_cast<int64_t>(prompt.size());
  TORCH_CHECK_VALUE(tokens_ == 0 && count >= 1 && count <= max_tokens_, "a prompt of ", count,
                    " tokens; 1 to ", max_tokens_, " are possible, once");
  const SequenceShard shard =
      model_.Place(attention::ShardMap::Contiguous(count, 1, 1), 0, nullptr, options_);
  std::vector<int64_t> tokens(prompt.begin(), prompt.end());
  at::Tensor x = Embed(parameters_[0], IndexTensor(tokens, options_).unsqueeze(0));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const QueryKeyValue qkv = ProjectAttention(config, Block(layer), shard.rotary, x);
    Keep(caches_[layer], qkv.key.select(0, 0), qkv.value.select(0, 0), 0);
    const at::Tensor attended =
        attention::DilatedAttention(qkv.query, qkv.key, qkv.value, config.attention).out;
    x = FinishBlock(config, Block(layer), x, attended);
  }
  tokens_ = count;
  return LastLogits(x);
}

at::Tensor Generator::Next(int64_t token) {
  const at::NoGradGuard no_grad;
  const LongNetConfig& config = model_.config();
  TORCH_CHECK_VALUE(tokens_ < max_tokens_, "token ", tokens_, " of at most ", max_tokens_);
  const int64_t position[] = {tokens_};
  const RotaryTables rotary = MakeRotaryTables(config, position, options_);
  std::vector<int64_t> tokens = {token};
  at::Tensor x = Embed(parameters_[0], IndexTensor(tokens, options_).unsqueeze(0));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const QueryKeyValue qkv = ProjectAttention(config, Block(layer), rotary, x);
    Keep(caches_[layer], qkv.key.select(0, 0), qkv.value.select(0, 0), tokens_);
    x = FinishBlock(config, Block(layer), x,
                    Attend(caches_[layer], qkv.query.select(0, 0).select(0, 0)));
  }
  ++tokens_;
  return LastLogits(x);
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
