#include "models/longnet.h"

#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "attention/block_sparse_attention.h"
#include "attention/dilated_attention.h"
#include "base/status_macros.h"
#include "models/block.h"

namespace ringmaster::models {
namespace {

// One block's autograd graph, from detached inputs to its output. `output` is undefined while the
// block is to be computed again.
struct TapeEntry {
  at::Tensor input;
  std::vector<at::Tensor> leaves;
  at::Tensor output;
};

at::Tensor Leaf(const at::Tensor& tensor) { return tensor.detach().set_requires_grad(true); }

std::vector<at::Tensor> Leaves(absl::Span<const at::Tensor> tensors) {
  std::vector<at::Tensor> leaves;
  leaves.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    leaves.push_back(Leaf(tensor));
  }
  return leaves;
}

// Logits of this many rows at once, so that their memory does not grow with the sequence.
int64_t LossChunk(int64_t vocab_size) { return std::max<int64_t>(256, (1 << 20) / vocab_size); }

// Sum over rows in fp32 at least.
at::Tensor SumOfLosses(const at::Tensor& logits, const at::Tensor& labels) {
  const at::Tensor exact = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  return at::cross_entropy_loss(exact, labels, {}, at::Reduction::Sum, /*ignore_index=*/-1);
}

at::Tensor ScalarLike(double value, const at::Tensor& like) {
  return at::scalar_tensor(value, like.options());
}

void Reach(const LongNet::PassOptions& options, Phase phase, int64_t layer) {
  if (options.hook) {
    options.hook(phase, layer);
  }
}

at::Tensor Attend(const QueryKeyValue& qkv, const SequenceShard& shard,
                  const attention::AttentionDropout& dropout) {
  if (const auto* branches = std::get_if<attention::DilatedAttentionOptions>(&shard.pattern)) {
    return attention::DilatedAttention(qkv.query, qkv.key, qkv.value, *branches, shard.map,
                                       shard.exchange, dropout, shard.strategy)
        .out;
  }
  return attention::BlockSparseAttention(
             qkv.query, qkv.key, qkv.value,
             std::get<attention::BlockSparseAttentionOptions>(shard.pattern), shard.map,
             shard.exchange, {}, dropout, shard.strategy)
      .out;
}

}  // namespace

struct LongNet::LastPattern {
  std::mutex mutex;
  int64_t tokens = 0;
  std::optional<attention::AttentionPattern> pattern;
};

LongNet::LongNet(LongNetConfig config)
    : config_(std::move(config)), last_pattern_(std::make_shared<LastPattern>()) {}

absl::StatusOr<LongNet> LongNet::Create(LongNetConfig config) {
  RETURN_IF_ERROR(config.Validate());
  return LongNet(std::move(config));
}

absl::StatusOr<attention::AttentionPattern> LongNet::Pattern(int64_t tokens) const {
  const std::lock_guard lock(last_pattern_->mutex);
  if (!last_pattern_->pattern.has_value() || last_pattern_->tokens != tokens) {
    ASSIGN_OR_RETURN(last_pattern_->pattern, config_.Pattern(tokens));
    last_pattern_->tokens = tokens;
  }
  return *last_pattern_->pattern;
}

SequenceShard LongNet::Place(attention::ShardMap map, int rank,
                             attention::GroupedExchange* exchange, const at::TensorOptions& options,
                             attention::Strategy strategy) const {
  const std::vector<int64_t> positions = map.Positions(rank);
  RotaryTables rotary = MakeRotaryTables(config_, positions, options);
  absl::StatusOr<attention::AttentionPattern> pattern = Pattern(map.tokens());
  TORCH_CHECK_VALUE(pattern.ok(), pattern.status().message());
  return {std::move(map),
          *std::move(pattern),
          rank,
          exchange,
          strategy,
          std::move(rotary),
          at::tensor(positions, options.dtype(at::kLong))};
}

absl::Span<const at::Tensor> LongNet::Block(absl::Span<const at::Tensor> parameters,
                                            int64_t layer) const {
  const int64_t count = BlockParameters(config_);
  return parameters.subspan(1 + layer * count, count);
}

int64_t LongNet::FinalNorm() const { return 1 + config_.layers * BlockParameters(config_); }

int64_t LongNet::Output() const { return config_.tied_embeddings ? 0 : FinalNorm() + 2; }

at::Tensor LongNet::RunBlock(absl::Span<const at::Tensor> block, const SequenceShard& shard,
                             const at::Tensor& x, const Drops& drops, int64_t layer) const {
  attention::AttentionDropout dropout = drops.probabilities;
  dropout.call = static_cast<uint64_t>(layer);
  return DecoderBlock(
      config_, block, shard.rotary, x,
      [&](const QueryKeyValue& qkv) { return Attend(qkv, shard, dropout); }, drops.channels, layer);
}

at::Tensor LongNet::RunBlocks(absl::Span<const at::Tensor> parameters, const SequenceShard& shard,
                              const at::Tensor& tokens) const {
  at::Tensor x = Embed(parameters[0], tokens);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    x = RunBlock(Block(parameters, layer), shard, x, {}, layer);
  }
  return x;
}

at::Tensor LongNet::ForwardBackward(absl::Span<const at::Tensor> parameters,
                                    const SequenceShard& shard, const at::Tensor& tokens,
                                    const at::Tensor& labels, double scale,
                                    absl::Span<const at::Tensor> gradients,
                                    const PassOptions& options) const {
  const at::NoGradGuard no_grad;
  Reach(options, Phase::kEmbedding, -1);
  const Drops drops{
      .channels = Dropout(options.dropout, options.dropout_seeds, shard.positions),
      .probabilities = {.probability = options.attention_dropout, .seeds = options.dropout_seeds}};
  at::Tensor x = drops.channels.Apply(Embed(parameters[0], tokens), 0);
  std::vector<TapeEntry> tape;
  const auto compute = [&](TapeEntry& entry, int64_t layer) {
    const at::AutoGradMode with_graph(true);
    entry.output = RunBlock(entry.leaves, shard, entry.input, drops, layer);
  };
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    Reach(options, Phase::kForward, layer);
    tape.push_back({Leaf(x), Leaves(Block(parameters, layer)), {}});
    if (options.recompute) {
      x = RunBlock(Block(parameters, layer), shard, x, drops, layer);
    } else {
      compute(tape.back(), layer);
      x = tape.back().output.detach();
    }
  }
  Reach(options, Phase::kLoss, -1);
  at::Tensor dx = at::empty_like(x);
  const at::Tensor loss = OutputLoss(parameters, x, labels, scale, gradients, dx);
  for (int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    Reach(options, Phase::kBackward, layer);
    TapeEntry& entry = tape.back();
    if (options.recompute) {
      compute(entry, layer);
    }
    std::vector<at::Tensor> inputs = std::move(entry.leaves);
    inputs.push_back(entry.input);
    const std::vector<at::Tensor> found =
        torch::autograd::grad({entry.output}, inputs, {dx}, /*retain_graph=*/false);
    const absl::Span<const at::Tensor> sums = Block(gradients, layer);
    for (size_t i = 0; i < sums.size(); ++i) {
      sums[i].add_(found[i]);
    }
    dx = found.back();
    tape.pop_back();
  }
  gradients[0].add_(EmbedBackward(drops.channels.Apply(dx, 0), tokens, config_.vocab_size));
  return loss;
}

at::Tensor LongNet::OutputLoss(absl::Span<const at::Tensor> parameters, const at::Tensor& x,
                               const at::Tensor& labels, double scale,
                               absl::Span<const at::Tensor> gradients, at::Tensor& dx) const {
  const at::Tensor rows = x.reshape({-1, config_.dim});
  const at::Tensor row_labels = labels.reshape({-1});
  const at::Tensor row_gradients = dx.view({-1, config_.dim});
  const int64_t places[] = {FinalNorm(), FinalNorm() + 1, Output()};
  const int64_t chunk = LossChunk(config_.vocab_size);
  at::Tensor total = at::zeros({}, x.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, rows.size(0) - begin);
    std::vector<at::Tensor> inputs = {Leaf(parameters[places[0]]), Leaf(parameters[places[1]]),
                                      Leaf(parameters[places[2]]),
                                      Leaf(rows.narrow(0, begin, count))};
    const at::AutoGradMode with_graph(true);
    const at::Tensor loss = SumOfLosses(OutputLogits(inputs[0], inputs[1], inputs[2], inputs[3]),
                                        row_labels.narrow(0, begin, count));
    const std::vector<at::Tensor> found =
        torch::autograd::grad({loss}, inputs, {ScalarLike(scale, loss)}, /*retain_graph=*/false);
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 3; ++i) {
      gradients[places[i]].add_(found[i]);
    }
    row_gradients.narrow(0, begin, count).copy_(found[3]);
    total.add_(loss.detach());
  }
  return total;
}

at::Tensor LongNet::NegativeLogLikelihood(absl::Span<const at::Tensor> parameters,
                                          const SequenceShard& shard, const at::Tensor& tokens,
                                          const at::Tensor& labels) const {
  const at::NoGradGuard no_grad;
  const at::Tensor rows = RunBlocks(parameters, shard, tokens).reshape({-1, config_.dim});
  const at::Tensor row_labels = labels.reshape({-1});
  const int64_t chunk = LossChunk(config_.vocab_size);
  at::Tensor total = at::zeros({}, rows.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, rows.size(0) - begin);
    const at::Tensor logits = OutputOf(parameters, rows.narrow(0, begin, count));
    total.add_(SumOfLosses(logits, row_labels.narrow(0, begin, count)));
  }
  return total;
}

at::Tensor LongNet::OutputOf(absl::Span<const at::Tensor> parameters, const at::Tensor& x) const {
  return OutputLogits(parameters[FinalNorm()], parameters[FinalNorm() + 1], parameters[Output()],
                      x);
}

at::Tensor LongNet::Logits(absl::Span<const at::Tensor> parameters, const SequenceShard& shard,
                           const at::Tensor& tokens) const {
  const at::NoGradGuard no_grad;
  return OutputOf(parameters, RunBlocks(parameters, shard, tokens));
}

}  // namespace ringmaster::models
