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
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "attention/parts/device_rows.h"
#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

int64_t RowsNeeded(const DilatedAttentionOptions& options) {
  int64_t longest = 1;
  for (const Branch& branch : options.branches) {
    longest = std::max(longest, branch.segment_length);
  }
  return longest;
}

// From a block's last token back to the first that it sees.
int64_t RowsNeeded(const BlockSparseAttentionOptions& options) {
  const BlockMask& mask = options.mask;
  int64_t most = 1;
  for (int64_t head = 0; head < mask.shape().heads; ++head) {
    for (int64_t block = 0; block < mask.shape().blocks(); ++block) {
      const absl::Span<const uint64_t> row = mask.Row(head, block);
      const auto word = std::find_if(row.begin(), row.end(), [](uint64_t x) { return x != 0; });
      if (word == row.end()) continue;
      const int64_t first = (word - row.begin()) * 64 + __builtin_ctzll(*word);
      most = std::max(most, mask.BlockBegin(block + 1) - mask.BlockBegin(first));
    }
  }
  return most;
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

// Query heads by the key/value head that they read, as many of each: where one has fewer, its last
// query head stands there again.
struct HeadGroups {
  // `heads` ascend; `group` of all heads read one key/value head.
  HeadGroups(const std::vector<int64_t>& heads, int64_t group) {
    std::map<int64_t, std::vector<int64_t>> readers;
    size_t most = 0;
    for (const int64_t head : heads) {
      std::vector<int64_t>& of_one = readers[head / group];
      of_one.push_back(head);
      most = std::max(most, of_one.size());
    }
    for (auto& [head, of_one] : readers) {
      kv.push_back(head);
      for (size_t i = 0; i < most; ++i) {
        if (i < of_one.size()) places.push_back(static_cast<int64_t>(queries.size()));
        queries.push_back(of_one[std::min(i, of_one.size() - 1)]);
      }
    }
  }

  std::vector<int64_t> kv;
  std::vector<int64_t> queries;  // as many for each of `kv`
  std::vector<int64_t> places;   // in `queries`, of each of the heads
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

void CheckPattern(const DilatedAttentionOptions& options, int64_t kv_heads, int64_t /*tokens*/) {
  Check(options.Validate());
  Check(options.share.Validate(kv_heads));  // There are at least as many query heads.
}

void CheckPattern(const BlockSparseAttentionOptions& options, int64_t /*kv_heads*/,
                  int64_t tokens) {
  const BlockMaskShape& shape = options.mask.shape();
  Check(options.Validate(shape.tokens, shape.heads));
  TORCH_CHECK_VALUE(!options.gated, "a cache for a mask with gates, which it does not know");
  TORCH_CHECK_VALUE(tokens <= shape.tokens, "a cache of ", tokens, " tokens; the mask is of ",
                    shape.tokens);
}

// The query of each head, and what the heads have found so far.
class Query {
 public:
  Query(const at::Tensor& q, const KeyValueCache& cache, std::optional<double> scale)
      : cache_(cache),
        type_(q.scalar_type()),
        group_(q.size(2) / cache.keys().size(2)),
        scaled_(q.select(1, 0).to(type_ == at::kDouble ? at::kDouble : at::kFloat) *
                scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))))),
        out_(at::zeros_like(scaled_)),
        lse_(at::full({q.size(0), q.size(2)}, -std::numeric_limits<double>::infinity(),
                      scaled_.options())) {}

  int64_t heads() const { return scaled_.size(1); }

  // Adds what `heads` find in tokens first, first + step, ... below `end`.
  void Attend(const std::vector<int64_t>& heads, int64_t first, int64_t end, int64_t step) {
    const HeadGroups groups(heads, group_);
    const at::Tensor query =  // [B, kv heads, query heads of each, D]
        SelectHeads(scaled_, 1, groups.queries)
            .unflatten(1, {static_cast<int64_t>(groups.kv.size()), -1});
    ForEachSlice(first, end, step, cache_.keys().size(1), [&](int64_t row, int64_t row_end) {
      const auto rows = [&](const at::Tensor& kept) {  // [B, kv heads, rows, D]
        return SelectHeads(kept.slice(1, row, row_end, step), 2, groups.kv)
            .transpose(1, 2)
            .to(scaled_.scalar_type());
      };
      const at::Tensor scores = at::matmul(query, rows(cache_.keys()).transpose(2, 3));
      const at::Tensor found = at::matmul(at::softmax(scores, -1), rows(cache_.values()));
      const auto of_heads = [&](const at::Tensor& x) {  // of one token
        return SelectHeads(x.flatten(1, 2), 1, groups.places).unsqueeze(1);
      };
      MergeOnDevice(of_heads(found), of_heads(at::logsumexp(scores, -1)), IndexOf(heads, out_),
                    out_.unsqueeze(1), lse_.unsqueeze(1));
    });
  }

  AttentionOutput Result() const { return {out_.to(type_).unsqueeze(1), lse_.unsqueeze(1)}; }

 private:
  const KeyValueCache& cache_;
  const at::ScalarType type_;
  const int64_t group_;
  const at::Tensor scaled_;  // [B, H, D], in the type of all sums, as what follows
  at::Tensor out_;           // [B, H, D]
  at::Tensor lse_;           // [B, H]
};

void AttendAll(const DilatedAttentionOptions& options, int64_t last, Query* query) {
  for (const Branch& branch : options.branches) {
    const int64_t begin = Segments(branch, options.documents, last + 1).At(last).begin;
    const int64_t rate = branch.dilation_rate, offset = (last - begin) % rate;
    std::vector<int64_t> chosen;
    for (int64_t head = 0; head < query->heads(); ++head) {
      if (HeadOffset(options, head, query->heads(), rate) == offset) chosen.push_back(head);
    }
    // A rate above the segment's tokens takes one token; the step past it must not overflow.
    const int64_t step = std::min(rate, last - begin + 1);
    if (!chosen.empty()) query->Attend(chosen, begin + offset, last + 1, step);
  }
}

// Blocks that lie side by side at once.
void AttendAll(const BlockSparseAttentionOptions& options, int64_t last, Query* query) {
  const BlockMask& mask = options.mask;
  const int64_t document = DocumentAt(options.documents, last, mask.shape().tokens).begin;
  const int64_t own = last / mask.shape().block_size;
  const bool alike = mask.shape().heads == 1;
  for (int64_t head = 0; head < (alike ? 1 : query->heads()); ++head) {
    std::vector<int64_t> heads(alike ? query->heads() : 1);
    std::iota(heads.begin(), heads.end(), head);
    int64_t begin = 0, end = 0;
    const auto attend = [&] {
      const int64_t from = std::max(begin, document), to = std::min(end, last + 1);
      if (from < to) query->Attend(heads, from, to, 1);
    };
    ForEachBlock(mask.Row(head, own), own + 1, [&](int64_t block) {
      if (mask.BlockBegin(block) > end) {
        attend();
        begin = mask.BlockBegin(block);
      }
      end = mask.BlockBegin(block + 1);
    });
    attend();
  }
}

}  // namespace

KeyValueCache::KeyValueCache(AttentionPattern pattern, int64_t batch, int64_t kv_heads,
                             int64_t head_dim, int64_t max_tokens, const at::TensorOptions& tensors)
    : pattern_(std::move(pattern)), max_tokens_(max_tokens) {
  TORCH_CHECK_VALUE(batch >= 0 && kv_heads >= 1 && head_dim >= 1 && max_tokens >= 1, "a cache of ",
                    max_tokens, " tokens of ", batch, " x ", kv_heads, " x ", head_dim,
                    "; all but the batch must be at least 1");
  std::visit([&](const auto& options) { CheckPattern(options, kv_heads, max_tokens); }, pattern_);
  const int64_t needed =
      std::visit([](const auto& options) { return RowsNeeded(options); }, pattern_);
  keys_ = at::zeros({batch, std::min(needed, max_tokens), kv_heads, head_dim}, tensors);
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
  TORCH_CHECK_VALUE(cache.tokens() > 0, "nothing was appended to the cache");
  TORCH_CHECK_VALUE(q.dim() == 4 && q.size(0) == keys.size(0) && q.size(1) == 1 &&
                        q.size(3) == keys.size(3) && q.size(2) % keys.size(2) == 0 &&
                        q.scalar_type() == keys.scalar_type(),
                    "q is ", q.sizes(), " of ", q.scalar_type(), "; the cache's keys are ",
                    keys.sizes(), " of ", keys.scalar_type());
  const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&cache.pattern());
  Check(blocks != nullptr
            ? blocks->Validate(blocks->mask.shape().tokens, q.size(2))
            : std::get<DilatedAttentionOptions>(cache.pattern()).share.Validate(q.size(2)));
  return std::visit(
      [&](const auto& options) {
        Query query(q, cache, options.scale);
        AttendAll(options, cache.tokens() - 1, &query);
        return query.Result();
      },
      cache.pattern());
}

}  // namespace ringmaster::attention
