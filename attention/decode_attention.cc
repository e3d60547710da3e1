#include "attention/decode_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "attention/parts/device_rows.h"
#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

int64_t RowsNeeded(const DilatedAttentionOptions& options, int64_t max_tokens) {
  int64_t longest = 1;
  for (const Branch& branch : options.branches) {
    longest = std::max(longest, branch.segment_length);
  }
  return std::min(longest, max_tokens);
}

at::Tensor IndexOf(const std::vector<int64_t>& heads, const at::Tensor& beside) {
  return at::tensor(heads, beside.options().dtype(at::kLong));
}

// Some heads of a tensor, which is returned itself where they are all of its heads in order.
at::Tensor SelectHeads(const at::Tensor& x, int64_t dim, const std::vector<int64_t>& heads) {
  std::vector<int64_t> all(x.size(dim));
  std::iota(all.begin(), all.end(), 0);
  return heads == all ? x : x.index_select(dim, IndexOf(heads, x));
}

// The results so far, [B, H, D] and [B, H] in the type of all sums.
struct Merged {
  at::Tensor out;
  at::Tensor lse;

  // Adds what `heads` found in further keys: their softmax [B, heads, D], its denominators [B,
  // heads].
  void Add(const std::vector<int64_t>& heads, const at::Tensor& found,
           const at::Tensor& found_lse) {
    // Of one token.
    MergeOnDevice(found.unsqueeze(1), found_lse.unsqueeze(1), IndexOf(heads, out), out.unsqueeze(1),
                  lse.unsqueeze(1));
  }
};

// Tokens first, first + rate, ... below `end`, of a ring of rows: at most two strided slices.
template <typename Visit>
void ForEachSlice(int64_t first, int64_t end, int64_t rate, int64_t rows, Visit visit) {
  while (first < end) {
    const int64_t row = first % rows;
    const int64_t count = (std::min(end - first, rows - row) - 1) / rate + 1;
    visit(row, row + (count - 1) * rate + 1);
    first += count * rate;
  }
}

void Check(const absl::Status& status) {
  TORCH_CHECK_VALUE(status.ok(), std::string(status.message()));
}

}  // namespace

KeyValueCache::KeyValueCache(DilatedAttentionOptions options, int64_t batch, int64_t kv_heads,
                             int64_t head_dim, int64_t max_tokens, const at::TensorOptions& tensors)
    : options_(std::move(options)), max_tokens_(max_tokens) {
  Check(options_.Validate());
  TORCH_CHECK_VALUE(batch >= 0 && kv_heads >= 1 && head_dim >= 1 && max_tokens >= 1, "a cache of ",
                    max_tokens, " tokens of ", batch, " x ", kv_heads, " x ", head_dim,
                    "; all but the batch must be at least 1");
  Check(options_.share.Validate(kv_heads));  // There are at least as many query heads.
  keys_ = at::zeros({batch, RowsNeeded(options_, max_tokens), kv_heads, head_dim}, tensors);
  values_ = at::zeros_like(keys_);
}

void KeyValueCache::Append(const at::Tensor& k, const at::Tensor& v) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(k.dim() == 4 && k.sizes() == v.sizes() && k.size(0) == keys_.size(0) &&
                        k.size(2) == keys_.size(2) && k.size(3) == keys_.size(3) &&
                        k.scalar_type() == keys_.scalar_type() &&
                        v.scalar_type() == keys_.scalar_type(),
                    "k is ", k.sizes(), " of ", k.scalar_type(), ", v ", v.sizes(), " of ",
                    v.scalar_type(), "; the cache takes [", keys_.size(0), ", n, ", keys_.size(2),
                    ", ", keys_.size(3), "] of ", keys_.scalar_type());
  const int64_t count = k.size(1);
  TORCH_CHECK_VALUE(count <= max_tokens_ - tokens_, count, " tokens after ", tokens_,
                    "; the cache is for ", max_tokens_);
  const int64_t rows = keys_.size(1);
  // Of more tokens than rows the last ones.
  const int64_t skipped = std::max<int64_t>(0, count - rows);
  ForEachSlice(tokens_ + skipped, tokens_ + count, 1, rows,
               [&, from = skipped](auto row, auto end) mutable {
                 keys_.slice(1, row, end).copy_(k.slice(1, from, from + end - row));
                 values_.slice(1, row, end).copy_(v.slice(1, from, from + end - row));
                 from += end - row;
               });
  tokens_ += count;
}

AttentionOutput DecodeAttention(const at::Tensor& q, const KeyValueCache& cache) {
  const at::NoGradGuard no_grad;
  const at::Tensor& keys = cache.keys();
  const DilatedAttentionOptions& options = cache.options();
  TORCH_CHECK_VALUE(cache.tokens() > 0, "nothing was appended to the cache");
  TORCH_CHECK_VALUE(q.dim() == 4 && q.size(0) == keys.size(0) && q.size(1) == 1 &&
                        q.size(3) == keys.size(3) && q.size(2) % keys.size(2) == 0 &&
                        q.scalar_type() == keys.scalar_type(),
                    "q is ", q.sizes(), " of ", q.scalar_type(), "; the cache's keys are ",
                    keys.sizes(), " of ", keys.scalar_type());
  Check(options.share.Validate(q.size(2)));
  const int64_t heads = q.size(2), group = heads / keys.size(2), last = cache.tokens() - 1;
  const at::ScalarType exact = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  const at::Tensor scaled = q.select(1, 0).to(exact) * scale;
  Merged merged{
      at::zeros_like(scaled),
      at::full({q.size(0), heads}, -std::numeric_limits<double>::infinity(), scaled.options())};
  for (const Branch& branch : options.branches) {
    const int64_t begin = Segments(branch, options.documents, last + 1).At(last).begin;
    const int64_t rate = branch.dilation_rate, offset = (last - begin) % rate;
    std::vector<int64_t> chosen, kv;
    for (int64_t head = 0; head < heads; ++head) {
      if (HeadOffset(options, head, heads, rate) == offset) {
        chosen.push_back(head);
        kv.push_back(head / group);
      }
    }
    if (chosen.empty()) continue;
    const at::Tensor query = SelectHeads(scaled, 1, chosen).unsqueeze(-1);  // [B, heads, D, 1]
    // A rate above the segment's tokens takes one token; the step past it must not overflow.
    const int64_t step = std::min(rate, last - begin + 1);
    ForEachSlice(begin + offset, last + 1, step, keys.size(1), [&](int64_t row, int64_t end) {
      const auto rows = [&](const at::Tensor& kept) {  // [B, heads, rows, D]
        return SelectHeads(kept.slice(1, row, end, step), 2, kv).transpose(1, 2).to(exact);
      };
      const at::Tensor scores = at::matmul(rows(keys), query).squeeze(-1);  // [B, heads, rows]
      const at::Tensor found =
          at::matmul(at::softmax(scores, -1).unsqueeze(-2), rows(cache.values())).squeeze(-2);
      merged.Add(chosen, found, at::logsumexp(scores, -1));
    });
  }
  return {merged.out.to(q.scalar_type()).unsqueeze(1), merged.lse.unsqueeze(1)};
}

}  // namespace ringmaster::attention
