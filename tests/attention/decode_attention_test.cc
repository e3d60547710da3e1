#include "attention/decode_attention.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "attention/reference_attention.h"
#include "tests/attention/random.h"

namespace ringmaster::attention {
namespace {

struct Problem {
  at::Tensor q, k, v;
  DilatedAttentionOptions options;
};

// Segments of up to 40 tokens within up to 150, so that rings wrap, also within a segment.
Problem RandomProblem(Random& random, at::ScalarType dtype) {
  Problem problem;
  const int64_t tokens = random.Between(1, 150), batch = random.Between(1, 3);
  const int64_t kv_heads = random.Between(1, 3), group = random.Between(1, 4);
  const int64_t head_dim = random.Between(1, 9);
  problem.q = random.Tensor({batch, tokens, kv_heads * group, head_dim}, dtype);
  problem.k = random.Tensor({batch, tokens, kv_heads, head_dim}, dtype);
  problem.v = random.Tensor({batch, tokens, kv_heads, head_dim}, dtype);
  for (int64_t i = random.Between(1, 4); i > 0; --i) {
    const int64_t segment = random.Between(1, 40);
    problem.options.branches.push_back({segment, random.Between(1, segment)});
  }
  if (random.OneIn(4)) {  // Also rates whose multiples overflow.
    const int64_t rate = random.OneIn(2) ? (int64_t{1} << 40) - random.Between(0, 2)
                                         : std::numeric_limits<int64_t>::max();
    problem.options.branches.push_back({std::numeric_limits<int64_t>::max(), rate});
  }
  problem.options.offset_mode = random.OneIn(2) ? OffsetMode::kPaper : OffsetMode::kTorchscale;
  if (random.OneIn(3)) problem.options.scale = random.Normal();
  problem.options.documents = random.SomeDocuments(tokens);
  return problem;
}

KeyValueCache CacheFor(const Problem& problem) {
  return KeyValueCache(problem.options, problem.k.size(0), problem.k.size(2), problem.k.size(3),
                       problem.k.size(1), problem.k.options());
}

at::Tensor Tokens(const at::Tensor& x, int64_t begin, int64_t end) {
  return x.slice(1, begin, end);
}

// Fed in pieces of random length: after each, the last token's row is the oracle's.
TEST(DecodeAttentionTest, EveryRowIsTheOraclesAlsoAfterWrappingAround) {
  at::set_num_threads(1);  // Of thousands of tiny operations; threads would only wait.
  int rows = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    for (const auto& [dtype, limit] :
         {std::pair{at::kDouble, 1e-12}, {at::kFloat, 2e-5}, {at::kBFloat16, 3e-2}}) {
      Random random(seed);
      const Problem problem = RandomProblem(random, dtype);
      const ReferenceResult expected =
          ReferenceAttention(problem.q, problem.k, problem.v, {}, problem.options);
      KeyValueCache cache = CacheFor(problem);
      while (cache.tokens() < problem.k.size(1)) {
        const int64_t from = cache.tokens();
        const int64_t to =
            std::min(problem.k.size(1), from + (random.OneIn(4) ? random.Between(1, 90) : 1));
        cache.Append(Tokens(problem.k, from, to), Tokens(problem.v, from, to));
        ASSERT_EQ(cache.tokens(), to);
        const AttentionOutput found = DecodeAttention(Tokens(problem.q, to - 1, to), cache);
        ASSERT_EQ(found.out.scalar_type(), dtype);
        ASSERT_LT(RelativeError(found.out, Tokens(expected.out, to - 1, to)), limit)
            << "seed " << seed << ", token " << to - 1;
        ASSERT_LT(RelativeError(found.lse, Tokens(expected.lse, to - 1, to)), limit)
            << "seed " << seed << ", token " << to - 1;
        ++rows;
      }
    }
  }
  EXPECT_GT(rows, 1000);
}

// Nothing is later than the last token.
TEST(DecodeAttentionTest, CausalMakesNoDifference) {
  Random random(5);
  Problem problem = RandomProblem(random, at::kDouble);
  problem.options.causal = false;
  KeyValueCache cache = CacheFor(problem);
  cache.Append(problem.k, problem.v);
  const int64_t tokens = problem.k.size(1);
  const ReferenceResult expected =
      ReferenceAttention(problem.q, problem.k, problem.v, {}, problem.options);
  const AttentionOutput found = DecodeAttention(Tokens(problem.q, tokens - 1, tokens), cache);
  EXPECT_LT(RelativeError(found.out, Tokens(expected.out, tokens - 1, tokens)), 1e-12);
}

// Masks of one head or of each, documents, and a ring that is as long as rows reach back.
TEST(DecodeAttentionTest, EveryRowOfAMaskIsTheOracles) {
  at::set_num_threads(1);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Random random(seed);
    const at::ScalarType dtype = random.OneIn(2) ? at::kDouble : at::kFloat;
    const int64_t tokens = random.Between(1, 500), kv_heads = random.Between(1, 3);
    const int64_t heads = kv_heads * random.Between(1, 3), batch = random.Between(1, 2);
    const int64_t reach = random.Between(0, 7);
    const BlockSparseAttentionOptions options = {
        .mask = *BlockMask::Create(
            {.heads = random.OneIn(2) ? 1 : heads, .tokens = tokens, .block_size = 64},
            [&](int64_t /*head*/, int64_t query, BlockRow& row) {
              for (int64_t key = std::max<int64_t>(0, query - reach); key <= query; ++key) {
                if (random.OneIn(2)) row.Show(key);
              }
            }),
        .scale = random.OneIn(3) ? std::optional<double>(random.Normal()) : std::nullopt,
        .documents = random.SomeDocuments(tokens)};
    const at::Tensor q = random.Tensor({batch, tokens, heads, 5}, dtype);
    const at::Tensor k = random.Tensor({batch, tokens, kv_heads, 5}, dtype);
    const at::Tensor v = random.Tensor({batch, tokens, kv_heads, 5}, dtype);
    const ReferenceResult expected = ReferenceAttention(q, k, v, {}, options);
    KeyValueCache cache(options, batch, kv_heads, 5, tokens, k.options());
    EXPECT_LE(cache.keys().size(1), std::min((reach + 1) * 64, tokens));
    while (cache.tokens() < tokens) {
      const int64_t from = cache.tokens();
      const int64_t to = std::min(tokens, from + random.Between(1, 90));
      cache.Append(Tokens(k, from, to), Tokens(v, from, to));
      const AttentionOutput found = DecodeAttention(Tokens(q, to - 1, to), cache);
      const double limit = dtype == at::kDouble ? 1e-12 : 2e-5;
      ASSERT_LT(RelativeError(found.out, Tokens(expected.out, to - 1, to)), limit)
          << "seed " << seed << ", token " << to - 1;
      ASSERT_LT(RelativeError(found.lse, Tokens(expected.lse, to - 1, to)), limit)
          << "seed " << seed << ", token " << to - 1;
    }
  }
}

TEST(DecodeAttentionTest, RefusesMasksThatDoNotFit) {
  BlockSparseAttentionOptions options = {
      .mask = *BlockMask::Create({.heads = 4, .tokens = 100, .block_size = 64},
                                 [](int64_t, int64_t query, BlockRow& row) { row.Show(query); })};
  EXPECT_THROW(KeyValueCache(options, 1, 2, 4, 101, at::kFloat), c10::Error);
  KeyValueCache cache(options, 1, 2, 4, 100, at::kFloat);
  EXPECT_EQ(cache.keys().size(1), 64);
  cache.Append(at::zeros({1, 9, 2, 4}), at::zeros({1, 9, 2, 4}));
  EXPECT_THROW(DecodeAttention(at::zeros({1, 1, 2, 4}), cache), c10::Error) << "2 of 4 heads";
  options.gated = true;
  EXPECT_THROW(KeyValueCache(options, 1, 2, 4, 100, at::kFloat), c10::Error);
}

// Counts what this thread's tensors take while it lives.
class Allocations : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* /*ptr*/, int64_t size, size_t /*total_allocated*/,
                         size_t /*total_reserved*/, c10::Device /*device*/) override {
    if (size > 0) bytes += size;
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t bytes = 0;
};

// However many query heads read a row, it is widened to fp32 once.
TEST(DecodeAttentionTest, QueryHeadsShareTheirKeysAndValues) {
  at::set_num_threads(1);
  constexpr int64_t kRows = 4096, kKvHeads = 2, kHeads = 16, kHeadDim = 64;
  KeyValueCache cache(DilatedAttentionOptions{.branches = {{kRows, 1}}}, 1, kKvHeads, kHeadDim,
                      kRows, at::kBFloat16);
  const auto randn = [](int64_t rows, int64_t heads) {
    return at::randn({1, rows, heads, kHeadDim}).to(at::kBFloat16);
  };
  cache.Append(randn(kRows, kKvHeads), randn(kRows, kKvHeads));
  const at::Tensor q = randn(1, kHeads);
  const auto allocations = std::make_shared<Allocations>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, allocations);
    DecodeAttention(q, cache);
  }
  constexpr int64_t kWide = 2 * kRows * kKvHeads * kHeadDim * 4, kScores = kRows * kHeads * 4;
  EXPECT_GE(allocations->bytes, kWide);
  EXPECT_LE(allocations->bytes, kWide + 8 * kScores);
}

TEST(DecodeAttentionTest, MemoryIsThatOfTheLongestSegment) {
  const DilatedAttentionOptions options{.branches = {{8, 1}, {int64_t{1} << 40, 7}, {30, 2}}};
  EXPECT_EQ(KeyValueCache(options, 1, 2, 4, 100, at::kFloat).keys().size(1), 100);
  const DilatedAttentionOptions shorter{.branches = {{8, 1}, {30, 2}}};
  EXPECT_EQ(KeyValueCache(shorter, 1, 2, 4, int64_t{1} << 40, at::kFloat).keys().size(1), 30);
}

TEST(DecodeAttentionTest, RefusesWhatDoesNotFit) {
  const DilatedAttentionOptions options{.branches = {{8, 2}}};
  EXPECT_THROW(KeyValueCache(DilatedAttentionOptions(), 1, 2, 4, 9, at::kFloat), c10::Error);
  EXPECT_THROW(KeyValueCache(options, 1, 2, 4, 0, at::kFloat), c10::Error);
  KeyValueCache cache(options, 1, 2, 4, 9, at::kFloat);
  const at::Tensor query = at::zeros({1, 1, 4, 4});
  EXPECT_THROW(DecodeAttention(query, cache), c10::Error) << "an empty cache";
  const at::Tensor nine = at::zeros({1, 9, 2, 4});
  EXPECT_THROW(cache.Append(nine, at::zeros({1, 8, 2, 4})), c10::Error);
  EXPECT_THROW(cache.Append(at::zeros({1, 9, 3, 4}), at::zeros({1, 9, 3, 4})), c10::Error);
  cache.Append(nine, nine);
  EXPECT_THROW(cache.Append(nine, nine), c10::Error) << "more than max_tokens";
  EXPECT_THROW(DecodeAttention(at::zeros({1, 1, 3, 4}), cache), c10::Error) << "3 of 2 heads";
  EXPECT_THROW(DecodeAttention(at::zeros({1, 2, 4, 4}), cache), c10::Error) << "two tokens";
  EXPECT_THROW(DecodeAttention(query.to(at::kDouble), cache), c10::Error);
  KeyValueCache other(options, 1, 2, 4, 9, at::kFloat);
  EXPECT_THROW(other.Append(nine.to(at::kDouble), nine.to(at::kDouble)), c10::Error);
  EXPECT_THROW(other.Append(nine, nine.to(at::kBFloat16)), c10::Error);
  EXPECT_EQ(other.tokens(), 0);
  EXPECT_EQ(DecodeAttention(query, cache).out.sizes(), query.sizes());
}

TEST(DecodeAttentionTest, RefusesHeadsOutsideOfTheirShare) {
  DilatedAttentionOptions options{.branches = {{8, 2}}, .share = {.first = 2, .of = 5}};
  const auto decode = [&](int64_t kv_heads, int64_t heads) {
    KeyValueCache cache(options, 1, kv_heads, 4, 9, at::kFloat);
    cache.Append(at::zeros({1, 1, kv_heads, 4}), at::zeros({1, 1, kv_heads, 4}));
    DecodeAttention(at::zeros({1, 1, heads, 4}), cache);
  };
  EXPECT_NO_THROW(decode(1, 3));
  EXPECT_THROW(decode(1, 4), c10::Error);
  EXPECT_THROW(KeyValueCache(options, 1, 4, 4, 9, at::kFloat), c10::Error);
  options.share.first = -1;
  EXPECT_THROW(KeyValueCache(options, 1, 1, 4, 9, at::kFloat), c10::Error);
}

}  // namespace
}  // namespace ringmaster::attention
