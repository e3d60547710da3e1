// The pieces beneath the operator, each against its plain twin.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "attention/parts/device_rows.h"
#include "attention/parts/placed_parts.h"
#include "attention/parts/rank_parts.h"
#include "attention/parts/rows.h"
#include "attention/plan/plan.h"
#include "attention/reference_attention.h"
#include "attention/stock/dense_attention.h"

namespace ringmaster::attention {
namespace {

TEST(DenseAttentionTest, BlocksOfMatrixProductsEqualTheFusedKernel) {
  at::manual_seed(3);
  for (bool causal : {true, false}) {
    for (double scale : {0.5, -0.5, 0.0}) {
      for (const auto& [queries, keys] : {std::pair{1, 1}, {70, 70}, {33, 70}, {1, 70}}) {
        const auto randn = [&](int64_t rows) { return at::randn({2, 3, rows, 5}, at::kDouble); };
        const at::Tensor q = randn(queries), k = randn(keys), v = randn(keys),
                         dout = randn(queries);
        const DenseOutput fused = DenseForward(q, k, v, causal, scale);
        const DenseOutput blocked = BlockedForward(q, k, v, causal, scale);
        EXPECT_LT((blocked.out - fused.out).abs().max().item<double>(), 1e-12);
        EXPECT_LT((blocked.lse - fused.lse).abs().max().item<double>(), 1e-12);
        const at::Tensor out = fused.out.contiguous(), lse = fused.lse.contiguous();
        const DenseGradients a = DenseBackward(dout, q, k, v, out, lse, causal, scale);
        const DenseGradients b = BlockedBackward(dout, q, k, v, out, lse, causal, scale);
        EXPECT_LT((b.dq - a.dq).abs().max().item<double>(), 1e-12);
        EXPECT_LT((b.dk - a.dk).abs().max().item<double>(), 1e-12);
        EXPECT_LT((b.dv - a.dv).abs().max().item<double>(), 1e-12);
      }
    }
  }
}

// 5000 keys exceed a block, so queries and groups are cut.
TEST(DenseAttentionTest, ManyBlocksEqualOne) {
  at::manual_seed(4);
  const auto randn = [] { return at::randn({1, 2, 5000, 4}, at::kDouble); };
  const at::Tensor q = randn(), k = randn(), v = randn(), dout = randn();
  const DenseOutput fused = DenseForward(q, k, v, true, 0.5);
  const DenseOutput blocked = BlockedForward(q, k, v, true, 0.5);
  EXPECT_LT((blocked.out - fused.out).abs().max().item<double>(), 1e-12);
  const at::Tensor out = fused.out.contiguous(), lse = fused.lse.contiguous();
  const DenseGradients a = DenseBackward(dout, q, k, v, out, lse, true, 0.5);
  const DenseGradients b = BlockedBackward(dout, q, k, v, out, lse, true, 0.5);
  EXPECT_LT((b.dk - a.dk).abs().max().item<double>(), 1e-11);
  EXPECT_LT((b.dq - a.dq).abs().max().item<double>(), 1e-11);
}

TEST(DenseAttentionTest, HalfPrecisionIsComputedWide) {
  DenseShape shape{
      .device = at::kCPU, .dtype = at::kBFloat16, .groups = 1, .keys = 4096, .head_dim = 64};
  EXPECT_EQ(ComputeType(shape), at::kFloat);
  shape.device = at::kCUDA;
  EXPECT_EQ(ComputeType(shape), at::kBFloat16);
  shape.keys = 1;
  EXPECT_EQ(ComputeType(shape), at::kFloat);
  shape = {.device = at::kCUDA, .dtype = at::kBFloat16, .groups = 1, .keys = 4096, .head_dim = 68};
  EXPECT_EQ(ComputeType(shape), at::kFloat);
  shape = {.device = at::kCUDA, .dtype = at::kDouble, .groups = 1, .keys = 4096, .head_dim = 64};
  EXPECT_EQ(ComputeType(shape), at::kDouble);
}

// Two groups of five rows; the second has two runs.
RowSet SomeRows(bool distinct) {
  RowSet set;
  set.runs = {{1, 3, 5, 1}, {0, 1, 2, 0}, {20, 2, 3, 2}};
  set.group_begin = {0, 1, 3};
  set.rows_per_group = 5;
  if (!distinct) {
    // The first group again, and most of it under other numbers.
    set.runs.insert(set.runs.end(), {{1, 3, 5, 1}, {4, 3, 5, 1}});
    set.group_begin.insert(set.group_begin.end(), {4, 5});
    set.distinct = false;
  }
  return set;
}

TEST(RowsTest, LoopsEqualTensorOperations) {
  at::manual_seed(5);
  for (bool distinct : {true, false}) {
    const RowSet set = SomeRows(distinct);
    const PlacedRows rows(set, 3, at::kCPU);
    const at::Tensor index = RowIndex(set, 3, at::kCPU);
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor whole = at::randn({2, 30, 3, 7}).to(dtype);
      const at::Tensor strided = whole.transpose(1, 2).contiguous().transpose(1, 2);
      const at::Tensor expected = GatherOnDevice(whole, index);
      EXPECT_TRUE(GatherRows(whole, rows, dtype).flatten(1, 2).equal(expected));
      EXPECT_TRUE(
          GatherRows(strided, rows, at::kDouble).flatten(1, 2).equal(expected.to(at::kDouble)));
    }
    for (at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      const at::Tensor values = at::randn({2, set.groups(), 5, 7}).to(dtype);
      const at::Tensor one = at::ones({2, 30, 3, 7}, dtype), two = one.clone();
      AddRows(values, rows, one);
      AddOnDevice(values, index, two);
      EXPECT_TRUE(one.equal(two));
    }
  }
}

TEST(RowsTest, MergingEqualsTensorOperationsAndSurvivesWideGaps) {
  at::manual_seed(6);
  const RowSet set = SomeRows(true);
  const PlacedRows rows(set, 3, at::kCPU);
  const at::Tensor index = RowIndex(set, 3, at::kCPU);
  const double infinity = std::numeric_limits<double>::infinity();
  const auto zeros = [] { return at::zeros({2, 30, 3, 7}, at::kDouble); };
  at::Tensor out = zeros(), lse = at::full({2, 30, 3}, -infinity, at::kDouble);
  at::Tensor device_out = zeros(), device_lse = lse.clone();
  for (double shift : {0.0, 2.0, -1e4, 1e4, 0.0}) {
    const at::Tensor part = at::randn({2, 2, 5, 7}, at::kDouble);
    const at::Tensor sums = at::randn({2, 2, 5}, at::kDouble) + shift;
    MergeRows(part, sums, rows, out, lse);
    MergeOnDevice(part, sums, index, device_out, device_lse);
    EXPECT_LT(RelativeError(device_out, out), 1e-14);
    EXPECT_LT(RelativeError(device_lse, lse), 1e-14);
    EXPECT_FALSE(out.isnan().any().item<bool>());
  }
  EXPECT_EQ(lse.isneginf().sum().item<int64_t>(), 2 * (90 - 10));
}

// Whatever the number of documents, each a sequence of its own.
TEST(RankPartsTest, DocumentsOfOneLengthAreOnePart) {
  DilatedAttentionOptions options{.branches = {{64, 1}, {int64_t{1} << 40, 4}}};
  for (int64_t start = 0; start < 4000; start += 16) options.documents.push_back(start);
  const RankParts parts =
      MakeRankParts(*AttentionPlan::Create(options, ShardMap::Contiguous(4000, 1, 1), 4, 2), 0);
  ASSERT_EQ(parts.local.size(), 2u);
  for (const Part& part : parts.local) {
    EXPECT_EQ(part.queries.groups(), 250 * 4);
    EXPECT_EQ(part.queries.rows_per_group, part.branch == 0 ? 16 : 4);
  }
  // Their first queries.
  EXPECT_EQ(parts.alone.rows(), 250 * 4);
}

TEST(FindPartsTest, TheSamePatternIsMadeOnce) {
  DilatedAttentionOptions options{.branches = {{8, 2}}};
  const ShardMap map = ShardMap::Contiguous(64, 2, 1);
  const auto first = FindParts(options, map, 0, 4, 2, at::kCPU, {});
  options.scale = 3.0;
  EXPECT_EQ(FindParts(options, map, 0, 4, 2, at::kCPU, {}), first);
  EXPECT_NE(FindParts(options, map, 1, 4, 2, at::kCPU, {}), first);
  options.causal = false;
  EXPECT_NE(FindParts(options, map, 0, 4, 2, at::kCPU, {}), first);
  EXPECT_GT(first->bytes(), 0u);
  options = {.branches = {{8, 2}}, .documents = {0, 5}};
  const auto documents = FindParts(options, map, 0, 4, 2, at::kCPU, {});
  EXPECT_NE(documents, first);
  EXPECT_EQ(FindParts(options, map, 0, 4, 2, at::kCPU, {}), documents);
  options.documents = {0, 6};
  EXPECT_NE(FindParts(options, map, 0, 4, 2, at::kCPU, {}), documents);
}

// Of packed sequences, and of masks that are chosen: one of each step.
TEST(FindPartsTest, PatternsOfOneStepDoNotStay) {
  const auto alive = [](const std::vector<std::weak_ptr<const PlacedParts>>& parts) {
    return std::ranges::count_if(parts, [](const auto& part) { return !part.expired(); });
  };
  const auto find = [](const AttentionPattern& pattern) {
    return FindParts(pattern, ShardMap::Contiguous(640, 1, 1), 0, 4, 2, at::kCPU, {});
  };
  const DilatedAttentionOptions fixed{.branches = {{640, 4}}};
  const std::weak_ptr<const PlacedParts> kept = find(fixed);
  std::vector<std::weak_ptr<const PlacedParts>> packed, chosen;
  for (int64_t step = 1; step <= 40; ++step) {
    const DilatedAttentionOptions documents{.branches = {{640, 3}}, .documents = {0, step}};
    packed.push_back(find(documents));
    EXPECT_EQ(find(documents), packed.back().lock()) << "of another layer";
    const BlockSparseAttentionOptions mask{
        .mask = *BlockMask::Create({.heads = 1, .tokens = 640, .block_size = 64},
                                   [&](int64_t, int64_t query, BlockRow& row) {
                                     row.Show(query);
                                     if (query == 9) row.Show(step % 9);
                                     if (query == 8) row.Show(step / 9);
                                   })};
    chosen.push_back(find(mask));
    EXPECT_EQ(find(mask), chosen.back().lock()) << "of another layer";
  }
  EXPECT_LE(alive(packed), 4);
  EXPECT_LE(alive(chosen), 4);
  EXPECT_EQ(find(fixed), kept.lock()) << "of every step";
}

}  // namespace
}  // namespace ringmaster::attention
