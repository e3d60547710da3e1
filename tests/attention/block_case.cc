// Random block-sparse problems.
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "tests/attention/attention_case.h"
#include "tests/attention/random.h"

namespace ringmaster::attention {
namespace {

// Rows of one kind: neighbours that see the same, windows, single blocks anywhere, nothing.
BlockMask RandomMask(Random& random, const BlockMaskShape& shape) {
  const int64_t density = random.Between(1, 4), window = random.Between(1, 3);
  const bool windows = random.OneIn(3), itself = random.OneIn(2), all = random.OneIn(5);
  const int64_t empty = random.OneIn(3) ? random.Between(2, 5) : 1 << 20;
  return *BlockMask::Create(shape, [&](int64_t, int64_t query, BlockRow& row) {
    if (all) return row.ShowRange(0, shape.blocks());
    if (random.OneIn(empty)) return;
    if (windows) row.ShowRange(std::max<int64_t>(0, query - window), query + 1);
    if (itself) row.Show(query);
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if (random.OneIn(1 + density)) row.Show(key);
    }
  });
}

}  // namespace

AttentionCase RandomBlockCase(uint64_t seed, const CaseLimits& limits) {
  Random random(seed);
  AttentionCase problem;
  const int64_t tokens = random.Between(
      limits.min_tokens,
      random.OneIn(3) ? std::min(limits.min_tokens + 140, limits.max_tokens) : limits.max_tokens);
  const int64_t batch = random.OneIn(4) ? 2 : 1;
  const int64_t kv_heads = random.Between(1, 2), group = random.OneIn(2) ? 1 : random.Between(1, 3);
  const int64_t size = random.Of(limits.head_dims);
  const at::ScalarType dtype = random.Of(limits.dtypes);
  const BlockMaskShape shape = {.heads = random.OneIn(2) ? 1 : kv_heads * group,
                                .tokens = tokens,
                                .block_size = random.OneIn(2) ? 64 : 128};
  problem.blocks.emplace(
      BlockSparseAttentionOptions{.mask = RandomMask(random, shape), .causal = !random.OneIn(3)});
  // Scores of up to twice the usual size: fp32 knows the weight of a key to as many digits as
  // its score has behind the point.
  if (random.OneIn(3)) {
    problem.blocks->scale =
        random.Of<double>({0, -1, 0.5, 2, -2}) / std::sqrt(static_cast<double>(size));
  }
  problem.map = random.Map(tokens, random.Of(limits.ranks));
  problem.blocks->documents = random.SomeDocuments(tokens);

  problem.q = random.Tensor({batch, tokens, kv_heads * group, size}, dtype);
  problem.k = random.Tensor({batch, tokens, kv_heads, size}, dtype);
  problem.v = random.Tensor({batch, tokens, kv_heads, size}, dtype);
  problem.dout = random.Tensor({batch, tokens, kv_heads * group, size}, dtype).contiguous();
  const at::Tensor lse =
      ReferenceAttention(problem.q, problem.k, problem.v, {}, problem.pattern()).lse;
  problem.dout.masked_fill_(lse.isneginf().unsqueeze(-1), std::nan(""));
  return problem;
}

}  // namespace ringmaster::attention
