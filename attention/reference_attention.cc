#include "attention/reference_attention.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <variant>
#include <vector>

#include "attention/kernels/philox.h"

namespace ringmaster::attention {
namespace {

// Where the document of each token starts.
std::vector<int64_t> StartsOf(const Documents& documents, int64_t tokens) {
  std::vector<int64_t> starts(tokens);
  for (const int64_t start : documents) {
    for (int64_t token = start; token < tokens; ++token) starts[token] = start;
  }
  return starts;
}

// How often the branches show key t' to query t of a head: [H, N, N], fp64.
at::Tensor KeyCounts(const DilatedAttentionOptions& options, absl::Span<const Branch> branches,
                     int64_t heads, int64_t tokens) {
  at::Tensor counts = at::zeros({heads, tokens, tokens}, at::kDouble);
  auto count = counts.accessor<double, 3>();
  const std::vector<int64_t> starts = StartsOf(options.documents, tokens);
  for (const Branch& branch : branches) {
    const int64_t w = std::min(branch.segment_length, tokens);
    const int64_t r = branch.dilation_rate;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t offset = HeadOffset(options, head, heads, r);
      for (int64_t query = 0; query < tokens; ++query) {
        const int64_t start = starts[query], from = query - start;
        for (int64_t key = 0; key < tokens; ++key) {
          const int64_t to = key - start;
          const bool visible = starts[key] == start && from / w == to / w &&
                               from % w % r == offset && to % w % r == offset &&
                               (!options.causal || key <= query);
          count[head][query][key] += visible ? 1 : 0;
        }
      }
    }
  }
  return counts;
}

// The same of a block mask: 1 or 0.
at::Tensor KeyCounts(const BlockSparseAttentionOptions& options, int64_t heads, int64_t tokens) {
  at::Tensor counts = at::zeros({heads, tokens, tokens}, at::kDouble);
  auto count = counts.accessor<double, 3>();
  const int64_t size = options.mask.shape().block_size;
  const std::vector<int64_t> starts = StartsOf(options.documents, tokens);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t query = 0; query < tokens; ++query) {
      for (int64_t key = 0; key < tokens; ++key) {
        const bool visible = starts[query] == starts[key] &&
                             options.mask.visible(head, query / size, key / size) &&
                             (!options.causal || key <= query);
        count[head][query][key] = visible ? 1 : 0;
      }
    }
  }
  return counts;
}

at::Tensor KeyCounts(const AttentionPattern& pattern, int64_t heads, int64_t tokens) {
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern);
  return dilated != nullptr
             ? KeyCounts(*dilated, dilated->branches, heads, tokens)
             : KeyCounts(std::get<BlockSparseAttentionOptions>(pattern), heads, tokens);
}

// How many times a probability of a branch is taken: 0, or 1 / (1 - p) where it is kept: [B, H, N,
// N].
at::Tensor BranchFactors(const AttentionDropout& dropout, uint32_t branch, int64_t heads,
                         int64_t tokens) {
  const auto batch = static_cast<int64_t>(dropout.seeds.size());
  at::Tensor factors = at::zeros({batch, heads, tokens, tokens}, at::kDouble);
  auto factor = factors.accessor<double, 4>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t head = 0; head < heads; ++head) {
      const auto key = kernels::Philox(
          {{static_cast<uint32_t>(dropout.call), static_cast<uint32_t>(dropout.call >> 32),
            static_cast<uint32_t>(head), branch}},
          dropout.seeds[b]);
      for (int64_t i = 0; i < tokens; ++i) {
        for (int64_t j = 0; j < tokens; ++j) {
          const auto random =
              kernels::Philox({{static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32),
                                static_cast<uint32_t>(j / 4), static_cast<uint32_t>(j >> 34)}},
                              key.words[0] + (uint64_t{key.words[1]} << 32));
          const bool kept = random.words[j % 4] >= std::floor(dropout.probability * 0x1p32);
          if (kept) factor[b][head][i][j] = 1 / (1 - dropout.probability);
        }
      }
    }
  }
  return factors;
}

// The same of keys that several branches show: the mean, as each has as much of the probability.
at::Tensor Factors(const AttentionDropout& dropout, const AttentionPattern& pattern, int64_t heads,
                   int64_t tokens) {
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern);
  if (dilated == nullptr) return BranchFactors(dropout, 0, heads, tokens);
  at::Tensor sum = at::zeros({heads, tokens, tokens}, at::kDouble), counts = sum;
  for (size_t i = 0; i < dilated->branches.size(); ++i) {
    const at::Tensor count = KeyCounts(*dilated, {&dilated->branches[i], 1}, heads, tokens);
    sum = sum + count * BranchFactors(dropout, static_cast<uint32_t>(i), heads, tokens);
    counts = counts + count;
  }
  return sum / counts.clamp_min(1);
}

// Which gate a query and a key have: [H * N * N], 0 where they do not see each other.
at::Tensor GateNumbers(const BlockSparseAttentionOptions& options, int64_t heads, int64_t tokens) {
  const BlockMaskShape& shape = options.mask.shape();
  at::Tensor blocks = at::zeros({heads, shape.blocks(), shape.blocks()}, at::kLong);
  auto number = blocks.accessor<int64_t, 3>();
  int64_t next = 0;
  for (int64_t head = 0; head < heads; ++head) {
    next = shape.heads == 1 ? 0 : next;
    for (int64_t query = 0; query < shape.blocks(); ++query) {
      for (int64_t key = 0; key < shape.blocks(); ++key) {
        if (options.mask.visible(head, query, key)) number[head][query][key] = next++;
      }
    }
  }
  const at::Tensor block = at::arange(tokens, at::kLong).floor_divide(shape.block_size);
  return blocks.index_select(1, block).index_select(2, block).flatten();
}

// Scores with the multiplicity of each key added as its logarithm, and their softmax. Queries
// without keys have weights 0 and lse -inf.
struct Softmax {
  Softmax(const at::Tensor& scores, const at::Tensor& counts) {
    const at::Tensor weighted = scores + counts.log().to(scores.scalar_type());
    lse = weighted.logsumexp(-1);
    covered = lse.isfinite();
    p = (weighted - at::where(covered, lse, 0.0).unsqueeze(-1)).exp();
  }

  at::Tensor p;        // [B, H, N, N]
  at::Tensor lse;      // [B, H, N]
  at::Tensor covered;  // [B, H, N]
};

// How the gradient of a softmax that is all but one key's is made: as in every textbook, by
// subtracting near equal numbers, or without.
enum class Cancellation { kTextbook, kAvoided };

// The dense model, with `accumulate` for every sum, and `rounded` for the outputs and wherever
// `rounding` says.
class DenseModel {
 public:
  DenseModel(const AttentionPattern& pattern, const AttentionDropout& dropout,
             at::ScalarType accumulate, at::ScalarType rounded, Cancellation cancellation,
             Rounding rounding)
      : pattern_(pattern),
        dropout_(dropout),
        accumulate_(accumulate),
        rounded_(rounded),
        cancellation_(cancellation),
        rounding_(rounding) {}

  ReferenceResult Run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& dout, const at::Tensor& log_gates) const {
    const int64_t tokens = q.size(1), heads = q.size(2), group = heads / k.size(2);
    const double scale = std::visit([](const auto& options) { return options.scale; }, pattern_)
                             .value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
    const at::Tensor queries = HeadsFirst(q, 1);
    const at::Tensor keys = HeadsFirst(k, group);
    const at::Tensor values = HeadsFirst(v, group);
    at::Tensor scores = queries.matmul(keys.transpose(-1, -2)) * scale;
    at::Tensor gate_numbers;
    const bool gated = log_gates.defined() && log_gates.size(1) > 0;
    if (gated) {
      gate_numbers = GateNumbers(std::get<BlockSparseAttentionOptions>(pattern_), heads, tokens);
      scores =
          scores +
          log_gates.to(at::kCPU, accumulate_).index_select(1, gate_numbers).view(scores.sizes());
    }
    const at::Tensor counts = KeyCounts(pattern_, heads, tokens);
    const Softmax merged(scores, counts);
    const at::Tensor factors =
        dropout_.on() ? Factors(dropout_, pattern_, heads, tokens).to(accumulate_) : at::Tensor();
    const at::Tensor p = RoundedEach(Dropped(merged.p, factors), counts);
    const at::Tensor out =
        rounding_ == Rounding::kFusedBranches ? OutOfBranches(scores, values) : p.matmul(values);

    ReferenceResult result{.out = Rounded(out), .lse = merged.lse.transpose(1, 2).contiguous()};
    if (!dout.defined()) {
      return result;
    }
    // Chosen, not multiplied: what lies at uncovered rows may be NaN.
    const at::Tensor gradient = at::where(merged.covered.unsqueeze(-1), HeadsFirst(dout, 1), 0.0);
    const at::Tensor undropped = gradient.matmul(values.transpose(-1, -2));
    const at::Tensor dp = Dropped(undropped, factors);
    at::Tensor ds;
    const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern_);
    if (dilated != nullptr && dilated->mix_gradient == MixGradient::kDetached) {
      ds = DetachedScoreGradient(*dilated, scores, merged.lse, undropped);
    } else if (rounding_ == Rounding::kProbabilities) {
      ds = ScoreGradient(merged.p, dp);
    } else {
      const at::Tensor saved = rounding_ == Rounding::kFused ? InPrecision(out) : out;
      ds = merged.p * (dp - (saved * gradient).sum(-1, true));
    }
    if (rounding_ != Rounding::kProbabilities) {
      ds = RoundedEach(ds, counts);
    }
    if (log_gates.defined()) {
      result.dlog_gates = at::zeros(log_gates.sizes(), ds.options());
    }
    if (gated) {
      const at::Tensor flat = ds.flatten(1);
      result.dlog_gates.scatter_add_(1, gate_numbers.expand(flat.sizes()), flat);
    }
    ds = ds * scale;
    result.dq = Rounded(ds.matmul(keys));
    result.dk = Rounded(SumGroup(ds.transpose(-1, -2).matmul(queries), group));
    result.dv = Rounded(SumGroup(p.transpose(-1, -2).matmul(gradient), group));
    return result;
  }

 private:
  // [B, N, H, D] -> [B, H * group, N, D] in the accumulation type.
  at::Tensor HeadsFirst(const at::Tensor& x, int64_t group) const {
    return x.to(at::kCPU, accumulate_).transpose(1, 2).repeat_interleave(group, 1);
  }
  at::Tensor Rounded(const at::Tensor& x) const {
    return x.transpose(1, 2).to(rounded_).contiguous();
  }
  at::Tensor InPrecision(const at::Tensor& x) const { return x.to(rounded_).to(accumulate_); }

  // Numbers of pairs, of which one that is shown several times is the sum of as many.
  at::Tensor RoundedEach(const at::Tensor& x, const at::Tensor& counts) const {
    if (rounding_ != Rounding::kFusedBranches) {
      return InPrecision(x);
    }
    const at::Tensor times = counts.clamp_min(1).to(accumulate_);
    return InPrecision(x / times) * times;
  }

  // The output by a softmax for each branch, before its own rounding.
  at::Tensor OutOfBranches(const at::Tensor& scores, const at::Tensor& values) const {
    const auto& options = std::get<DilatedAttentionOptions>(pattern_);
    std::vector<at::Tensor> outs, lses;
    for (const Branch& branch : options.branches) {
      const Softmax own(scores, KeyCounts(options, {&branch, 1}, scores.size(1), scores.size(2)));
      const at::Tensor most = own.p.amax(-1, true).clamp_min(std::numeric_limits<float>::min());
      outs.push_back(InPrecision(own.p / most).matmul(values) * most);
      lses.push_back(own.lse.unsqueeze(-1));
    }
    const at::Tensor weights = at::stack(lses).softmax(0).nan_to_num(0);
    return (weights * at::stack(outs)).sum(0);
  }

  static at::Tensor SumGroup(const at::Tensor& x, int64_t group) {
    return x.unflatten(1, {x.size(1) / group, group}).sum(2);
  }

  // Probabilities, or gradients of what they became.
  static at::Tensor Dropped(const at::Tensor& x, const at::Tensor& factors) {
    return factors.defined() ? x * factors : x;
  }

  // d loss / d scores of a softmax with weights p, given d loss / d weights.
  at::Tensor ScoreGradient(const at::Tensor& p, const at::Tensor& dp) const {
    const at::Tensor mean = (InPrecision(p) * dp).sum(-1, true);
    at::Tensor ds = p * (dp - mean);
    if (cancellation_ == Cancellation::kAvoided) {
      // They sum to zero, so that of the largest weight, where dp and the mean cancel, is known
      // from the others, where they do not.
      const at::Tensor largest = p.argmax(-1, true);
      ds.scatter_(-1, largest, 0.0);
      ds.scatter_(-1, largest, -ds.sum(-1, true));
    }
    return ds;
  }

  // d loss / d scores when the weights that mix the branches are constants: each branch has its own
  // softmax. `dp` is d loss / d weights as if none were dropped.
  at::Tensor DetachedScoreGradient(const DilatedAttentionOptions& options, const at::Tensor& scores,
                                   const at::Tensor& lse, const at::Tensor& dp) const {
    at::Tensor ds = at::zeros_like(scores);
    for (size_t i = 0; i < options.branches.size(); ++i) {
      const int64_t heads = scores.size(1), tokens = scores.size(2);
      const Softmax own(scores, KeyCounts(options, {&options.branches[i], 1}, heads, tokens));
      const at::Tensor factors =
          dropout_.on() ? BranchFactors(dropout_, static_cast<uint32_t>(i), heads, tokens)
                        : at::Tensor();
      const at::Tensor weight = at::where(own.covered, (own.lse - lse).exp(), 0.0).unsqueeze(-1);
      ds += weight * ScoreGradient(own.p, Dropped(dp, factors).to(accumulate_));
    }
    return ds;
  }

  const AttentionPattern& pattern_;
  const AttentionDropout& dropout_;
  at::ScalarType accumulate_;
  at::ScalarType rounded_;
  Cancellation cancellation_;
  Rounding rounding_;
};

}  // namespace

ReferenceResult ReferenceAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& dout, const AttentionPattern& pattern,
                                   const at::Tensor& log_gates, const AttentionDropout& dropout) {
  return DenseModel(pattern, dropout, at::kDouble, at::kDouble, Cancellation::kAvoided,
                    Rounding::kProbabilities)
      .Run(q, k, v, dout, log_gates);
}

ReferenceResult SamePrecisionReference(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const at::Tensor& dout,
                                       const AttentionPattern& pattern, Rounding rounding,
                                       const at::Tensor& log_gates,
                                       const AttentionDropout& dropout) {
  TORCH_CHECK_VALUE(rounding != Rounding::kFusedBranches ||
                        (!dropout.on() && std::holds_alternative<DilatedAttentionOptions>(pattern)),
                    "this model knows branches only, without dropout");
  const at::ScalarType dtype = q.scalar_type();
  return DenseModel(pattern, dropout, dtype == at::kDouble ? at::kDouble : at::kFloat, dtype,
                    Cancellation::kTextbook, rounding)
      .Run(q, k, v, dout, log_gates);
}

double RelativeError(const at::Tensor& x, const at::Tensor& reference) {
  if (x.numel() == 0) {
    return 0;
  }
  const at::Tensor a = x.detach().to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor b = reference.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* values = a.const_data_ptr<double>();
  const double* expected = b.const_data_ptr<double>();
  double squares = 0;
  int64_t finite = 0;
  for (int64_t i = 0; i < b.numel(); ++i) {
    if (std::isfinite(expected[i])) {
      squares += expected[i] * expected[i];
      ++finite;
    }
  }
  const double rms = finite == 0 ? 0 : std::sqrt(squares / static_cast<double>(finite));
  double worst = 0;
  for (int64_t i = 0; i < b.numel(); ++i) {
    if (values[i] == expected[i]) {
      continue;
    }
    const double error = std::abs(values[i] - expected[i]) / (std::abs(expected[i]) + rms);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
  }
  return worst;
}

}  // namespace ringmaster::attention
