#include "attention/adaptive_blocks.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/block_sparse_attention.h"
#include "attention/plan/block_mask.h"
#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

// Scores that are made at a time.
constexpr int64_t kScores = int64_t{1} << 22;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Tokens to blocks: [B, N, ...] -> [B, blocks, block size, ...], the last filled up with `filler`.
at::Tensor InBlocks(const at::Tensor& x, int64_t size, double filler) {
  const int64_t blocks = (x.size(1) + size - 1) / size;
  at::Tensor whole = x;
  if (const int64_t missing = blocks * size - x.size(1); missing > 0) {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes[1] = missing;
    whole = at::cat({x, at::full(sizes, filler, x.options())}, 1);
  }
  return whole.unflatten(1, {blocks, size});
}

// Mean of each block's tokens: [B, N, ...] -> [B, blocks, ...].
at::Tensor BlockMeans(const at::Tensor& x, int64_t size) {
  const at::Tensor sums = InBlocks(x, size, 0).sum(2);
  at::Tensor tokens = at::full({sums.size(1)}, static_cast<double>(size), x.options());
  tokens[-1] = static_cast<double>(x.size(1) - (sums.size(1) - 1) * size);
  return sums / tokens.view({1, -1, 1, 1});
}

// Which blocks of keys the blocks of queries [begin, end) may choose: [end - begin, blocks].
at::Tensor Candidates(const AdaptiveBlocksOptions& options, int64_t begin, int64_t end,
                      int64_t blocks, at::Device device) {
  const at::Tensor keys = at::arange(blocks, at::TensorOptions(device).dtype(at::kLong));
  const at::Tensor queries =
      at::arange(begin, end, at::TensorOptions(device).dtype(at::kLong)).unsqueeze(1);
  return (options.causal ? keys < queries : keys != queries).logical_and(keys >= options.sinks);
}

// Adds up the entropies of the rows' softmaxes over their candidates, of what they could be.
class EntropyMean {
 public:
  // `scores` [groups, rows, blocks], -inf for no candidates; rows have `candidates` [rows].
  void Add(const at::Tensor& scores, const at::Tensor& candidates) {
    const at::Tensor choosing = candidates > 1;
    const int64_t rows = choosing.sum().item<int64_t>();
    if (rows == 0) return;
    const at::Tensor log_p = scores.log_softmax(-1);
    const at::Tensor terms = at::where(log_p.isneginf(), 0.0, log_p.exp() * log_p).sum(-1).neg();
    const at::Tensor most = candidates.to(scores.scalar_type()).log();
    sum_ += at::where(choosing, terms / most, 0.0).sum().item<double>();
    rows_ += rows * scores.size(0);
  }
  double mean() const { return rows_ == 0 ? 0 : sum_ / static_cast<double>(rows_); }

 private:
  double sum_ = 0;
  int64_t rows_ = 0;
};

// The numbers of the chosen blocks, `blocks` where there are none left: [groups, blocks, chosen].
at::Tensor ChooseBlocks(const AdaptiveBlocksOptions& options, const at::Tensor& queries,
                        const at::Tensor& keys, std::optional<uint64_t> noise_seed,
                        EntropyMean* entropy) {
  const int64_t blocks = queries.size(1);
  const int64_t rows = std::max<int64_t>(1, kScores / (queries.size(0) * blocks));
  auto random = at::make_generator<at::CPUGeneratorImpl>(noise_seed.value_or(0));
  std::vector<at::Tensor> chosen;
  for (int64_t begin = 0; begin < blocks; begin += rows) {
    const int64_t end = std::min(begin + rows, blocks);
    const at::Tensor candidates = Candidates(options, begin, end, blocks, queries.device());
    at::Tensor scores = at::bmm(queries.slice(1, begin, end), keys.transpose(1, 2))
                            .masked_fill_(candidates.logical_not(), -kInfinity);
    entropy->Add(scores, candidates.sum(-1));
    if (noise_seed.has_value()) {
      const at::Tensor waiting =
          at::empty(scores.sizes(), scores.options().device(at::kCPU)).exponential_(1, random);
      scores = scores - waiting.log_().to(scores.device());
    }
    const auto [sorted, order] = scores.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
    const int64_t most = std::min(options.chosen, blocks);
    chosen.push_back(
        order.narrow(2, 0, most).masked_fill(sorted.narrow(2, 0, most).isneginf(), blocks));
  }
  return at::cat(chosen, 1);
}

// The chosen blocks and those that are always seen, ascending; `blocks` where there are none:
// [groups, blocks, slots].
at::Tensor WithOwnAndSinks(const AdaptiveBlocksOptions& options, const at::Tensor& chosen) {
  const int64_t groups = chosen.size(0), blocks = chosen.size(1);
  const at::Tensor own = at::arange(blocks, chosen.options()).unsqueeze(1);
  const at::Tensor sinks = at::arange(std::min(options.sinks, blocks), chosen.options());
  const at::Tensor seen = at::where(options.causal ? sinks < own : sinks != own, sinks, blocks);
  const at::Tensor always = at::cat({seen, own}, 1).unsqueeze(0);
  return std::get<0>(
      at::cat({chosen, always.expand({groups, blocks, always.size(2)})}, 2).sort(-1));
}

BlockMask MaskOf(const AdaptiveBlocksOptions& options, const at::Tensor& key_blocks,
                 int64_t tokens) {
  const at::Tensor host = key_blocks.cpu();
  const auto keys = host.accessor<int64_t, 3>();
  const int64_t group = options.heads / options.kv_heads;
  auto mask = BlockMask::Create(
      {.heads = host.size(0) * group, .tokens = tokens, .block_size = options.block_size},
      [&](int64_t head, int64_t query, BlockRow& row) {
        for (int64_t slot = 0; slot < host.size(2); ++slot) {
          const int64_t key = keys[head / group][query][slot];
          if (key < host.size(1)) row.Show(key);
        }
      });
  TORCH_CHECK_VALUE(mask.ok(), mask.status().message());
  return *std::move(mask);
}

// The heads of all sequences beside each other: [B, N, H, D] -> [1, N, B * H, D].
at::Tensor AsOneSequence(const at::Tensor& x) {
  return x.transpose(0, 1).flatten(1, 2).unsqueeze(0);
}

}  // namespace

absl::Status AdaptiveBlocksOptions::Validate() const {
  const std::pair<const char*, int64_t> sizes[] = {
      {"heads", heads}, {"kv_heads", kv_heads}, {"head_dim", head_dim}, {"score_dim", score_dim}};
  for (const auto& [name, value] : sizes) {
    if (value < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", value, "; it must be at least 1"));
    }
  }
  if (heads % kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("heads is ", heads, ", not a multiple of kv_heads, ", kv_heads));
  }
  const int64_t least = gated ? 2 : 1;
  if (chosen < least) {
    return absl::InvalidArgumentError(
        absl::StrCat("chosen is ", chosen, "; it must be at least ", least,
                     least == 2 ? ", since the softmax of one score is 1 whatever it is" : ""));
  }
  if (sinks < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sinks is ", sinks, "; it must not be negative"));
  }
  return BlockMaskShape{.block_size = block_size}.Validate();
}

absl::StatusOr<AdaptiveBlocks> AdaptiveBlocks::Create(const AdaptiveBlocksOptions& options,
                                                      uint64_t seed,
                                                      const at::TensorOptions& tensor_options) {
  RETURN_IF_ERROR(options.Validate());
  const at::ScalarType dtype = c10::typeMetaToScalarType(tensor_options.dtype());
  if (dtype != at::kFloat && dtype != at::kDouble) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parameters that choose blocks are ", c10::toString(dtype), "; they must be fp32 or fp64"));
  }
  AdaptiveBlocks made(options);
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  const double deviation = 1 / std::sqrt(static_cast<double>(options.head_dim));
  const auto projection = [&](int64_t heads) {
    return at::empty({heads, options.head_dim, options.score_dim}, at::kDouble)
        .normal_(0, deviation, random)
        .to(tensor_options)
        .set_requires_grad(true);
  };
  made.query_own_ = projection(options.heads);
  made.query_before_ = projection(options.heads);
  made.key_ = projection(options.kv_heads);
  // At first all tokens of a block weigh the same.
  made.key_weight_ =
      at::zeros({options.kv_heads, options.head_dim}, tensor_options).set_requires_grad(true);
  return made;
}

AdaptiveBlocks::Summaries AdaptiveBlocks::Summarize(const at::Tensor& q,
                                                    const at::Tensor& k) const {
  const int64_t size = options_.block_size;
  const at::Tensor queries = q.to(key_.scalar_type()), keys = k.to(key_.scalar_type());
  const at::Tensor means = BlockMeans(queries, size);
  const at::Tensor own = options_.causal ? queries.slice(1, 0, std::nullopt, size) : means;
  const at::Tensor before =
      at::cat({at::zeros_like(means.slice(1, 0, 1)), means.slice(1, 0, -1)}, 1);
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(1, 2); };
  // Query heads of one key/value head choose together.
  const at::Tensor summary =
      (heads_first(own).matmul(query_own_) + heads_first(before).matmul(query_before_))
          .unflatten(1, {options_.kv_heads, options_.heads / options_.kv_heads})
          .mean(2);

  const at::Tensor weights =
      InBlocks((keys * key_weight_).sum(-1), size, -kInfinity).softmax(2).unsqueeze(-1);
  const at::Tensor pooled = (weights * InBlocks(keys, size, 0)).sum(2);
  return {summary.flatten(0, 1) / std::sqrt(static_cast<double>(options_.score_dim)),
          heads_first(pooled).matmul(key_).flatten(0, 1)};
}

at::Tensor AdaptiveBlocks::LogGates(const Summaries& summaries,
                                    const at::Tensor& key_blocks) const {
  const int64_t groups = key_blocks.size(0), blocks = key_blocks.size(1);
  const at::Tensor first = at::arange(groups, key_blocks.options()).view({-1, 1, 1}) * blocks;
  const at::Tensor rows = (key_blocks.clamp_max(blocks - 1) + first).flatten();
  const at::Tensor keys = summaries.keys.flatten(0, 1).index_select(0, rows).view(
      {groups, blocks, key_blocks.size(2), options_.score_dim});
  const at::Tensor scores = (summaries.queries.unsqueeze(2) * keys).sum(-1);
  // Those who could not do otherwise have no gate, which is 1.
  const at::Tensor own = at::arange(blocks, key_blocks.options()).unsqueeze(1);
  const at::Tensor gated = (key_blocks >= options_.sinks)
                               .logical_and(key_blocks != own)
                               .logical_and(key_blocks < blocks);
  // Not -inf: of a block that chose nothing the softmax would be no number.
  constexpr double kNever = -1e30;
  return at::where(gated, scores.masked_fill(gated.logical_not(), kNever).log_softmax(-1), 0.0);
}

BlockChoice AdaptiveBlocks::Choose(const at::Tensor& q, const at::Tensor& k,
                                   std::optional<uint64_t> noise_seed) const {
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0) && q.size(1) >= 1 &&
                        q.size(1) == k.size(1),
                    "q and k must be [B, N, H, D] of the same tokens, at least one; they are ",
                    q.sizes(), " and ", k.sizes());
  TORCH_CHECK_VALUE(q.size(2) == options_.heads && k.size(2) == options_.kv_heads &&
                        q.size(3) == options_.head_dim && k.size(3) == options_.head_dim,
                    "q ", q.sizes(), " and k ", k.sizes(), " must have ", options_.heads, " and ",
                    options_.kv_heads, " heads of ", options_.head_dim);
  const Summaries summaries = Summarize(q, k);
  EntropyMean entropy;
  at::Tensor key_blocks;
  {
    const at::NoGradGuard no_grad;
    key_blocks = WithOwnAndSinks(
        options_, ChooseBlocks(options_, summaries.queries, summaries.keys, noise_seed, &entropy));
  }
  BlockChoice choice{{.mask = MaskOf(options_, key_blocks, q.size(1)),
                      .causal = options_.causal,
                      .scale = options_.scale,
                      .gated = options_.gated}};
  choice.density = choice.options.mask.Density(options_.causal);
  choice.entropy = entropy.mean();
  if (choice.options.gated) {
    // In the mask's order: by head, block of queries, block of keys.
    const auto per_head = [&](const at::Tensor& x) {
      return x.unsqueeze(1).expand({-1, options_.heads / options_.kv_heads, -1, -1});
    };
    choice.log_gates = per_head(LogGates(summaries, key_blocks))
                           .masked_select(per_head(key_blocks < key_blocks.size(1)))
                           .unsqueeze(0);
  }
  return choice;
}

AttentionOutput AttendToChoice(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const BlockChoice& choice) {
  TORCH_CHECK_VALUE(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
                    "q, k and v must be [B, N, H, D]");
  const AttentionOutput output = BlockSparseAttention(
      AsOneSequence(q), AsOneSequence(k), AsOneSequence(v), choice.options, choice.log_gates);
  const auto back = [&](const at::Tensor& x) {
    return x.squeeze(0).unflatten(1, {q.size(0), q.size(2)}).transpose(0, 1).contiguous();
  };
  return {back(output.out), back(output.lse)};
}

}  // namespace ringmaster::attention
