// Which gradients are zero whatever the numbers are, against the dense oracle.
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

}  // namespace
}  // namespace ringmaster::attention
