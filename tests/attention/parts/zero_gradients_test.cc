// Which gradients are zero whatever the numbers are, against the dense oracle, and that the
// operator returns zeros there. With tests/attention/tiles/tile_ops_on_host.cc in it, tiles do too.
#include "attention/parts/zero_gradients.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "attention/plan/plan.h"
#include "tests/attention/attention_case.h"

namespace ringmaster::attention {
namespace {

// Small scores: no key has all of a query's weight unless it is the only one.
AttentionCase SmallScores(uint64_t seed) {
  const CaseLimits limits = {.max_tokens = 40, .dtypes = {at::kDouble}, .ranks = {1, 2, 3}};
  AttentionCase problem =
      seed % 3 == 0
          ? RandomBlockCase(seed, {.max_tokens = 300, .dtypes = {at::kDouble}, .ranks = {1, 2, 3}})
          : RandomCase(seed, limits);
  problem.options.scale = 0.3;
  if (problem.blocks.has_value()) problem.blocks->scale = 0.3;
  return problem;
}

// The rank's places, token * heads + head, where the whole sequence's rows hold but rounding.
std::vector<int64_t> ZeroPlaces(const at::Tensor& gradients, const ShardMap& map, int rank) {
  const at::Tensor own = gradients.index_select(1, at::tensor(map.Positions(rank), at::kLong));
  const at::Tensor zero = own.abs().amax({0, 3}).flatten().lt(1e-12).nonzero().flatten();
  return {zero.data_ptr<int64_t>(), zero.data_ptr<int64_t>() + zero.numel()};
}

TEST(ZeroGradientsTest, AreWhatTheOracleHasOfThem) {
  size_t queries = 0, keys = 0;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const AttentionCase problem = SmallScores(seed);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    const auto heads = static_cast<int>(problem.q.size(2)),
               kv_heads = static_cast<int>(problem.k.size(2));
    const ReferenceResult reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern());
    const auto plan = AttentionPlan::Create(problem.pattern(), problem.map, heads, kv_heads);
    for (int rank = 0; rank < problem.map.ranks(); ++rank) {
      const ZeroGradients found = FindZeroGradients(MakeRankParts(*plan, rank), heads, kv_heads);
      const std::vector<int64_t> dq = ZeroPlaces(reference.dq, problem.map, rank),
                                 dk = ZeroPlaces(reference.dk, problem.map, rank);
      EXPECT_TRUE(std::ranges::includes(dq, found.queries));
      EXPECT_TRUE(std::ranges::includes(dk, found.keys));
      queries += found.queries.size();
      keys += found.keys.size();
      if (problem.blocks.has_value() || reference.lse.isneginf().any().item<bool>()) continue;
      // Every query sees its own key: no other gradient is zero.
      EXPECT_EQ(found.queries, dq);
      if (problem.map.ranks() == 1) {
        EXPECT_EQ(found.keys, dk);
      }
    }
  }
  EXPECT_GT(queries, 1000u);
  EXPECT_GT(keys, 100u);
}

// How many of the numbers at these places of a rank are not zero.
int64_t NotZero(const at::Tensor& gradients, const ShardMap& map, int rank,
                const std::vector<int64_t>& places) {
  const at::Tensor own = gradients.index_select(1, at::tensor(map.Positions(rank), at::kLong));
  return own.flatten(1, 2)
      .index_select(1, at::tensor(places, at::kLong))
      .count_nonzero()
      .item<int64_t>();
}

struct ZeroCounts {
  size_t queries = 0, keys = 0;
};

// That the operator's gradients are zero, not but for rounding, where all parts say so.
void ExpectZeros(const AttentionCase& problem, ZeroCounts* counts) {
  const auto heads = static_cast<int>(problem.q.size(2)),
             kv_heads = static_cast<int>(problem.k.size(2));
  const AttentionResult result = RunRanks(problem);
  const auto plan = AttentionPlan::Create(problem.pattern(), problem.map, heads, kv_heads);
  for (int rank = 0; rank < problem.map.ranks(); ++rank) {
    const ZeroGradients zero = FindZeroGradients(MakeRankParts(*plan, rank), heads, kv_heads);
    EXPECT_EQ(NotZero(result.dq, problem.map, rank, zero.queries), 0);
    EXPECT_EQ(NotZero(result.dk, problem.map, rank, zero.keys), 0);
    counts->queries += zero.queries.size();
    counts->keys += zero.keys.size();
  }
}

TEST(ZeroGradientsTest, AreZerosWithDropout) {
  ZeroCounts counts;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    const CaseLimits limits = {.max_tokens = seed % 3 == 0 ? 300 : 40,
                               .dtypes = {at::kDouble, at::kFloat, at::kBFloat16},
                               .ranks = {1, 2, 3}};
    AttentionCase problem =
        seed % 3 == 0 ? RandomBlockCase(seed, limits) : RandomCase(seed, limits);
    problem.dropout = {.probability = 0.3, .seeds = {seed, ~seed}, .call = seed};
    problem.dropout.seeds.resize(problem.q.size(0));
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    ExpectZeros(problem, &counts);
  }
  EXPECT_GT(counts.queries, 1000u);
  EXPECT_GT(counts.keys, 100u);
}

TEST(ZeroGradientsTest, AreZerosByTiles) {
  ZeroCounts counts;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    AttentionCase problem = RandomCase(seed, {.min_tokens = kMaxShortTokens + 1,
                                              .max_tokens = 300,
                                              .dtypes = {at::kBFloat16, at::kHalf},
                                              .ranks = {1, 2, 3}});
    problem.options.mix_gradient = MixGradient::kExact;
    problem.options.scale = 0.3;
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    ASSERT_EQ(DescribeExecutor(problem.q, problem.pattern(), problem.map.tokens()),
              "kernels over tiles");
    ExpectZeros(problem, &counts);
  }
  EXPECT_GT(counts.queries, 100u);
  EXPECT_GT(counts.keys, 10u);
}

}  // namespace
}  // namespace ringmaster::attention
