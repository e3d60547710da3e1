#include "attention/block_sparse_attention.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/dilated_attention.h"
#include "attention/parts/rank_parts.h"
#include "attention/plan/block_mask.h"
#include "attention/plan/plan.h"
#include "attention/reference_attention.h"
#include "tests/attention/attention_case.h"

namespace ringmaster::attention {
namespace {

using ::testing::HasSubstr;

// Rows 0 and 3 of the blocks of head 1 see nothing.
BlockMask SomeMask(int64_t tokens) {
  const BlockMaskShape shape = {.heads = 2, .tokens = tokens, .block_size = 64};
  return *BlockMask::Create(shape, [&](int64_t head, int64_t query, BlockRow& row) {
    if (head == 1 && query % 3 == 0) return;
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if ((head + query + key) % 2 == 0) row.Show(key);
    }
  });
}

// The oracle against another's attention with a mask of pairs, and autograd.
TEST(BlockSparseReferenceTest, IsAttentionWithAMaskOfPairs) {
  at::manual_seed(1);
  const int64_t tokens = 300;
  const BlockMask mask = SomeMask(tokens);
  for (const int variant : {0, 1, 2, 3}) {
    const bool causal = variant % 2 == 0;
    const int64_t second = variant < 2 ? tokens : 100;  // where a second document starts, if any
    const Documents documents = variant < 2 ? Documents{} : Documents{0, second};
    const auto randn = [&](int64_t heads) { return at::randn({1, tokens, heads, 4}, at::kDouble); };
    const at::Tensor q = randn(2), k = randn(1), v = randn(1), dout = randn(2);
    at::Tensor seen = at::zeros({2, tokens, tokens}, at::kBool);
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t query = 0; query < tokens; ++query) {
        for (int64_t key = 0; key < (causal ? query + 1 : tokens); ++key) {
          seen[head][query][key] =
              mask.visible(head, query / 64, key / 64) && (query < second) == (key < second);
        }
      }
    }
    const at::Tensor covered = seen.any(-1).transpose(0, 1).unsqueeze(0).unsqueeze(-1);
    for (const at::Tensor& x : {q, k, v}) x.set_requires_grad(true);
    const at::Tensor scores =
        q.transpose(1, 2).matmul(k.permute({0, 2, 3, 1})) * 0.5 +
        at::where(seen, 0.0, -std::numeric_limits<double>::infinity()).to(at::kDouble);
    const at::Tensor weights = at::where(seen.any(-1, true), scores, 0.0).softmax(-1);
    const at::Tensor out =
        at::where(covered, weights.matmul(v.transpose(1, 2)).transpose(1, 2), 0.0);
    const auto gradients = torch::autograd::grad({out}, {q, k, v}, {dout});
    const ReferenceResult got = ReferenceAttention(
        q.detach(), k.detach(), v.detach(), dout.masked_fill(covered.logical_not(), std::nan("")),
        BlockSparseAttentionOptions{.mask = mask, .causal = causal, .documents = documents});
    EXPECT_LT(RelativeError(got.out, out), 1e-13);
    EXPECT_TRUE(got.lse.isneginf().equal(covered.squeeze(-1).logical_not()));
    EXPECT_LT(RelativeError(got.lse, scores.logsumexp(-1).transpose(1, 2)), 1e-13);
    EXPECT_LT(RelativeError(got.dq, gradients[0]), 1e-12);
    EXPECT_LT(RelativeError(got.dk, gradients[1]), 1e-12);
    EXPECT_LT(RelativeError(got.dv, gradients[2]), 1e-12);
  }
}

BlockMask MaskOf(const BlockMaskShape& shape, bool (*shows)(int64_t query, int64_t key)) {
  return *BlockMask::Create(shape, [&](int64_t, int64_t query, BlockRow& row) {
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if (shows(query, key)) row.Show(key);
    }
  });
}

bool All(int64_t, int64_t) { return true; }
bool Itself(int64_t query, int64_t key) { return query == key; }
bool Every2nd(int64_t query, int64_t key) { return (query + key) % 2 == 0; }

struct Inputs {
  at::Tensor q, k, v;
};

Inputs Randoms(int64_t tokens, int64_t heads, int64_t kv_heads,
               at::ScalarType dtype = at::kDouble) {
  at::manual_seed(11);
  return {at::randn({1, tokens, heads, 8}).to(dtype), at::randn({1, tokens, kv_heads, 8}).to(dtype),
          at::randn({1, tokens, kv_heads, 8}).to(dtype)};
}

TEST(BlockSparseAttentionTest, AFullMaskIsPlainAttention) {
  const Inputs x = Randoms(300, 4, 2);
  for (const bool causal : {true, false}) {
    const AttentionOutput got = BlockSparseAttention(
        x.q, x.k, x.v, {.mask = MaskOf({.tokens = 300}, All), .causal = causal});
    const AttentionOutput plain =
        DilatedAttention(x.q, x.k, x.v, {.branches = {{300, 1}}, .causal = causal});
    EXPECT_LT(RelativeError(got.out, plain.out), 1e-13);
    EXPECT_LT(RelativeError(got.lse, plain.lse), 1e-13);
  }
}

TEST(BlockSparseAttentionTest, NothingLeaksFromTheFuture) {
  const BlockSparseAttentionOptions options = {
      .mask = MaskOf({.tokens = 500, .block_size = 64}, Every2nd)};
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const Inputs x = Randoms(500, 4, 2, dtype);
    const AttentionOutput before = BlockSparseAttention(x.q, x.k, x.v, options);
    for (const int64_t token : {1, 63, 64, 150, 499}) {
      const Inputs changed{x.q.clone(), x.k.clone(), x.v.clone()};
      changed.k.slice(1, token).normal_();
      changed.v.slice(1, token).normal_();
      const AttentionOutput after = BlockSparseAttention(changed.q, changed.k, changed.v, options);
      EXPECT_TRUE(after.out.slice(1, 0, token).equal(before.out.slice(1, 0, token))) << token;
      EXPECT_TRUE(after.lse.slice(1, 0, token).equal(before.lse.slice(1, 0, token))) << token;
      EXPECT_FALSE(after.out.slice(1, token).equal(before.out.slice(1, token))) << token;
    }
  }
}

// The first of each block, and blocks of one.
TEST(BlockSparseAttentionTest, QueriesThatSeeOnlyThemselvesGiveTheirGradientToVAlone) {
  for (const int ranks : {1, 3}) {
    for (const bool causal : {true, false}) {
      AttentionCase problem;
      const Inputs x = Randoms(129, 2, 1, at::kFloat);
      problem.q = x.q, problem.k = x.k, problem.v = x.v;
      problem.dout = at::randn_like(x.q);
      problem.blocks.emplace(BlockSparseAttentionOptions{
          .mask = MaskOf({.tokens = 129, .block_size = 64}, Itself), .causal = causal});
      problem.map = ShardMap::Contiguous(129, ranks, 1);
      const AttentionResult result = RunRanks(problem, Path::kLongSequence);
      for (const int64_t token : {0, 64, 128}) {
        const bool alone = causal || token == 128;
        EXPECT_EQ(result.dq.select(1, token).count_nonzero().item<int64_t>() == 0, alone);
      }
      EXPECT_EQ(result.dk.select(1, 128).count_nonzero().item<int64_t>(), 0);
      EXPECT_TRUE(
          result.dv.select(1, 128).equal(problem.dout.select(1, 128).sum(1, /*keepdim=*/true)));
    }
  }
}

// Many problems of one part add to one row of keys.
TEST(BlockSparseAttentionTest, TheBitsDoNotDependOnWhichThreadIsFirst) {
  at::manual_seed(12);
  const auto randn = [](int64_t heads) { return at::randn({1, 1100, heads, 64}); };
  const Inputs x = {randn(4), randn(1), randn(1)};
  for (const at::Tensor& input : {x.q, x.k, x.v}) input.set_requires_grad(true);
  const BlockSparseAttentionOptions options = {
      .mask = MaskOf({.tokens = 1100, .block_size = 64}, Every2nd), .causal = false};
  std::vector<at::Tensor> first;
  // ThreadSanitizer knows nothing of OpenMP's order, so that its tests have one thread.
  if (at::get_num_threads() > 1) at::set_num_threads(3);
  for (int repeat = 0; repeat < 10; ++repeat) {
    const AttentionOutput output = BlockSparseAttention(x.q, x.k, x.v, options);
    auto tensors = torch::autograd::grad({output.out}, {x.q, x.k, x.v}, {at::ones_like(x.q)});
    tensors.push_back(output.out);
    if (first.empty()) first = tensors;
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(tensors[i].equal(first[i])) << i;
  }
  at::set_num_threads(1);
}

TEST(BlockSparseAttentionTest, RefusesWhatDoesNotFitAndNamesIt) {
  const Inputs x = Randoms(100, 4, 2);
  const auto message = [&](const BlockSparseAttentionOptions& options) -> std::string {
    try {
      BlockSparseAttention(x.q, x.k, x.v, options);
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  EXPECT_THAT(message({.mask = MaskOf({.tokens = 101}, All)}),
              HasSubstr("tokens of the block mask is 101"));
  EXPECT_THAT(message({.mask = MaskOf({.heads = 2, .tokens = 100}, All)}),
              HasSubstr("heads of the block mask is 2; it must be 1 or the 4 query heads"));
  EXPECT_THAT(message({.mask = MaskOf({.tokens = 100}, All), .scale = std::nan("")}),
              HasSubstr("scale is nan"));
  EXPECT_EQ(message({.mask = MaskOf({.heads = 4, .tokens = 100}, All)}), "");
}

RankParts PartsOf(const BlockSparseAttentionOptions& options, const ShardMap& map, int rank) {
  return MakeRankParts(*AttentionPlan::Create(options, map, 4, 2), rank);
}

TEST(BlockPartsTest, NeighboursThatSeeTheSameAreOneProblem) {
  for (const bool causal : {true, false}) {
    const RankParts parts = PartsOf({.mask = MaskOf({.tokens = 1000}, All), .causal = causal},
                                    ShardMap::Contiguous(1000, 1, 1), 0);
    ASSERT_EQ(parts.local.size(), 1u);
    EXPECT_EQ(parts.local[0].causal, causal);
    EXPECT_EQ(parts.local[0].queries.groups(), 4);
    EXPECT_EQ(parts.local[0].queries.rows_per_group, 1000);
    EXPECT_EQ(parts.local[0].keys.runs,
              (std::vector<attention::Run>{
                  {0, 1, 1000, 0}, {0, 1, 1000, 0}, {0, 1, 1000, 1}, {0, 1, 1000, 1}}));
    EXPECT_TRUE(parts.far.empty());
  }
}

// Documents that a full mask shows are problems of their own, as many as there are.
TEST(BlockPartsTest, DocumentsOfOneLengthAreOnePart) {
  BlockSparseAttentionOptions options = {.mask = MaskOf({.tokens = 4000}, All)};
  for (int64_t start = 0; start < 4000; start += 250) options.documents.push_back(start);
  const RankParts parts = PartsOf(options, ShardMap::Contiguous(4000, 1, 1), 0);
  ASSERT_EQ(parts.local.size(), 1u);
  EXPECT_EQ(parts.local[0].queries.groups(), 16 * 4);
  EXPECT_EQ(parts.local[0].queries.rows_per_group, 250);
  // Their first queries.
  EXPECT_EQ(parts.alone.rows(), 16 * 4);
}

TEST(BlockPartsTest, WholeBlocksAndTheDiagonalOneAreOneProblem) {
  const RankParts parts =
      PartsOf({.mask = MaskOf({.tokens = 512}, Every2nd)}, ShardMap::Contiguous(512, 1, 1), 0);
  // Blocks 0 and 1 see themselves, 2 and 3 the one before the last as well.
  ASSERT_EQ(parts.local.size(), 2u);
  EXPECT_EQ(parts.local[0].keys.rows_per_group, 128);
  EXPECT_EQ(parts.local[1].keys.rows_per_group, 256);
  for (const Part& part : parts.local) {
    EXPECT_TRUE(part.causal);
    EXPECT_EQ(part.queries.groups(), 2 * 4);
    EXPECT_EQ(part.queries.rows_per_group, 128);
  }
}

// A part gathers its keys: as many rows as there are queries, if it has more than one problem.
TEST(BlockPartsTest, PartsAreBounded) {
  const RankParts parts =
      PartsOf({.mask = MaskOf({.tokens = 128 * 40},
                              [](int64_t query, int64_t key) { return key % 4 == query % 2; }),
               .causal = false},
              ShardMap::Contiguous(128 * 40, 1, 1), 0);
  int64_t groups = 0;
  for (const Part& part : parts.local) {
    EXPECT_LE(part.keys.rows(), 4 * 128 * 40);
    groups += part.queries.groups();
  }
  EXPECT_EQ(groups, 40 * 4);
}

}  // namespace
}  // namespace ringmaster::attention
