#include "attention/plan/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "attention/plan/block_patterns.h"

namespace ringmaster::attention {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr MessageShape kShape{.head_dim = 64, .element_bytes = 2};

RingCall Dilated(std::vector<Branch> branches, int64_t tokens, int ranks) {
  return {DilatedAttentionOptions{.branches = std::move(branches)}, tokens, ranks, 4, 2, kShape};
}

RingCall Masked(std::string_view pattern, int64_t tokens, int ranks) {
  const BlockPattern found = *FindBlockPattern(pattern);
  return {BlockSparseAttentionOptions{
              .mask = *MakeBlockMask(found, ShardMap::Contiguous(tokens, ranks, 1), ranks),
              .causal = found.causal},
          tokens,
          ranks,
          4,
          2,
          kShape};
}

const Layout& Named(const Layouts& layouts, std::string_view name) {
  const auto found = std::find_if(layouts.all.begin(), layouts.all.end(),
                                  [&](const Layout& layout) { return layout.name == name; });
  EXPECT_NE(found, layouts.all.end()) << name;
  return *found;
}

TEST(LayoutTest, KeepsLocalSegmentsWholeWhereThatStaysEven) {
  const std::vector<Branch> branches = {{1024, 1}, {4096, 2}, {1 << 30, 4}};
  EXPECT_EQ(ChooseLayout(Dilated(branches, 16384, 2))->map(), ShardMap::Contiguous(16384, 2, 4096));
  EXPECT_EQ(ChooseLayout(Dilated(branches, 8192, 4))->map(), ShardMap::Contiguous(8192, 4, 1024));
  // Either length would give the second rank 5904 of 10000 tokens.
  EXPECT_EQ(ChooseLayout(Dilated(branches, 10000, 2))->map(), ShardMap::Contiguous(10000, 2, 1));
  EXPECT_EQ(ChooseLayout(Dilated(branches, 3, 8))->map(), ShardMap::Contiguous(3, 8, 1));
  EXPECT_EQ(ChooseLayout(Dilated(branches, 0, 8))->map(), ShardMap::Contiguous(0, 8, 1));
}

TEST(LayoutTest, PairsEarlyAndLateChunksWhereLateTokensSeeMore) {
  const int64_t tokens = 1 << 20;
  const Layouts layouts = *ChooseLayout(Dilated({{2048, 1}, {tokens, 1}}, tokens, 8));
  EXPECT_EQ(layouts.map(), ShardMap::Zigzag(tokens, 8, 2048));
  EXPECT_LT(layouts.all[0].cost.imbalance, 1.001);
  EXPECT_GT(Named(layouts, "contiguous chunks, borders on multiples of 2048").cost.imbalance, 1.8);
  RingCall full = Dilated({{2048, 1}, {tokens, 1}}, tokens, 8);
  std::get<DilatedAttentionOptions>(full.pattern).causal = false;
  EXPECT_EQ(ChooseLayout(full)->map(), ShardMap::Contiguous(tokens, 8, 2048));
}

TEST(LayoutTest, LooksAtWhatAMaskShows) {
  for (const std::string& name : BlockPatternNames()) {
    SCOPED_TRACE(name);
    // 45 GB/s make bytes matter most at so few tokens.
    const Layouts layouts = *ChooseLayout(Masked(name, 32 * 128, 4), {.bytes_per_second = 1e15});
    double least = 4;
    for (const Layout& layout : layouts.all) least = std::min(least, layout.cost.imbalance);
    EXPECT_LT(layouts.all[0].cost.imbalance, least + 0.05);
    EXPECT_LT(least, 1.2);
  }
}

// The first rows see all, so that neither contiguous chunks nor pairs are even.
TEST(LayoutTest, DealsChunksByTheirWork) {
  const BlockMask mask =
      *BlockMask::Create({.tokens = 64 * 128}, [](int64_t, int64_t query, BlockRow& row) {
        row.ShowRange(query, query + 1);
        if (query % 16 < 4) row.ShowRange(0, 64);
      });
  const Layouts layouts = *ChooseLayout(
      {BlockSparseAttentionOptions{.mask = mask, .causal = false}, 64 * 128, 4, 4, 4, kShape},
      {.bytes_per_second = 1e15});
  EXPECT_LT(layouts.all[0].cost.imbalance, 1.01);
}

// Each of eight ranks computes one of eight key/value heads, whatever a mask shows: less travels
// than all keys and values to all.
TEST(LayoutTest, SwapsTokensForHeadsWhereAllSeeAll) {
  RingCall call = Dilated({{1 << 18, 1}}, 1 << 18, 8);
  call.heads = call.kv_heads = 8;
  const Layouts layouts = *ChooseLayout(call);
  EXPECT_EQ(layouts.strategy(), Strategy::kHeads);
  EXPECT_EQ(layouts.all[0].cost.imbalance, 1);
  const LayoutCost& zigzag = Named(layouts, "zigzag pairs of chunks").cost;
  EXPECT_GT(zigzag.exchanged_bytes, 2 * layouts.all[0].cost.exchanged_bytes);
  EXPECT_GT(zigzag.memory_bytes, layouts.all[0].cost.memory_bytes);
  // Two heads leave six ranks without work.
  call.heads = call.kv_heads = 2;
  EXPECT_EQ(ChooseLayout(call)->strategy(), Strategy::kGrouped);
  // Of rows a mile apart few travel.
  call = Dilated({{2048, 1}, {1 << 18, 128}}, 1 << 18, 8);
  call.heads = call.kv_heads = 8;
  EXPECT_EQ(ChooseLayout(call)->strategy(), Strategy::kGrouped);
}

// Whatever an exchange costs, swapped heads are chosen where they gain a tenth by formula.
TEST(LayoutTest, SwapsTokensForHeadsForNoSmallGain) {
  RingCall call = Dilated({{1 << 18, 1}}, 1 << 18, 8);
  call.heads = call.kv_heads = 8;
  int swapped = 0;
  for (RingRates rates; rates.bytes_per_second < 1e13; rates.bytes_per_second *= 1.1) {
    const Layouts layouts = *ChooseLayout(call, rates);
    double grouped = std::numeric_limits<double>::infinity();
    for (const Layout& layout : layouts.all) {
      if (layout.strategy == Strategy::kGrouped) grouped = std::min(grouped, layout.cost.seconds);
    }
    const double heads = Named(layouts, "tokens swapped for heads").cost.seconds;
    EXPECT_EQ(layouts.strategy(), heads < 0.9 * grouped ? Strategy::kHeads : Strategy::kGrouped);
    swapped += layouts.strategy() == Strategy::kHeads ? 1 : 0;
  }
  EXPECT_GT(swapped, 0);
  EXPECT_LT(swapped, 57);
}

TEST(LayoutTest, KnowsNoSharesOfHeadsWithGates) {
  RingCall call = Masked("random_25", 32 * 128, 4);
  std::get<BlockSparseAttentionOptions>(call.pattern).gated = true;
  const Layouts layouts = *ChooseLayout(call);
  for (const Layout& layout : layouts.all) {
    EXPECT_EQ(layout.strategy, Strategy::kGrouped);
  }
}

TEST(LayoutTest, PredictsTheBytesOfThePlan) {
  for (const RingCall& call :
       {Dilated({{64, 1}, {700, 3}, {4096, 2}}, 4000, 5), Masked("random_25", 4000, 5)}) {
    const Layouts layouts = *ChooseLayout(call);
    for (const Layout& layout : layouts.all) {
      const AttentionPlan plan = *PlanOf(call, layout);
      uint64_t most = 0;
      for (int rank = 0; rank < 5; ++rank) {
        uint64_t received = 0;
        for (int peer = 0; peer < 5; ++peer) {
          received +=
              plan.ForwardBytes(peer, rank, kShape) + plan.BackwardBytes(peer, rank, kShape);
        }
        most =
            std::max({most, received,
                      plan.SentBytesForward(rank, kShape) + plan.SentBytesBackward(rank, kShape)});
      }
      EXPECT_EQ(layout.cost.exchanged_bytes, static_cast<double>(most)) << layout.name;
    }
  }
}

// A row for all heads costs what it says, but is passed by once, not once for each head: more ranks
// are looked at.
TEST(LayoutTest, PassesOnceByTheRowsOfAllHeads) {
  const auto call = [](int64_t mask_heads) {
    const auto fill = [](int64_t, int64_t query, BlockRow& row) { row.ShowRange(0, query + 1); };
    const BlockMask mask = *BlockMask::Create({.heads = mask_heads, .tokens = 128 * 128}, fill);
    return RingCall{BlockSparseAttentionOptions{.mask = mask}, 128 * 128, 8, 64, 8, kShape};
  };
  const RingCall one = call(1), each = call(64);
  const Layouts layouts = *ChooseLayout(one), of_each = *ChooseLayout(each);
  EXPECT_EQ(layouts.Explain(), of_each.Explain());
  const auto ranks = [](const RingCall& call, const Layout& layout) {
    return SampleRanks(*PlanOf(call, layout), 8, 1 << 16).size();
  };
  const Layout grouped = {ShardMap::Contiguous(128 * 128, 8, 1)};
  EXPECT_EQ(ranks(one, grouped), 8u);
  EXPECT_EQ(ranks(each, grouped), 1u);
}

// A window of a tenth of 8192 blocks: 64 ranks would take three times as long as 2^22 looks may. To
// look at one takes 20 to 25 ms however many peers it has, as nothing is made for each of them.
TEST(LayoutTest, LooksAtAsManyRanksOfAMaskAsTimeAllows) {
  const BlockMask mask =
      *BlockMask::Create({.tokens = 128 * 8192}, [](int64_t, int64_t query, BlockRow& row) {
        row.ShowRange(std::max<int64_t>(0, query - 420), query + 1);
      });
  const auto sampled = [&](int ranks) {
    const RingCall call{
        BlockSparseAttentionOptions{.mask = mask}, 128 * 8192, ranks, 16, 16, kShape};
    const Layout grouped = {ShardMap::Contiguous(128 * 8192, ranks, 1)};
    return SampleRanks(*PlanOf(call, grouped), 64, 1 << 22).size();
  };
  EXPECT_EQ(sampled(8), 8u);
  EXPECT_EQ(sampled(64), 19u);
  EXPECT_EQ(sampled(512), 19u);
}

TEST(LayoutTest, ChoosesTheSameForAnyBatchAndHeadDimension) {
  std::vector<RingCall> calls;
  for (const int64_t tokens : {4000, 40000, 400000}) {
    for (const int ranks : {2, 3, 8}) {
      calls.push_back(Dilated({{1000, 1}, {20000, 1}, {1 << 30, 4}}, tokens, ranks));
    }
  }
  RingCall& swapped = calls.emplace_back(Dilated({{1 << 18, 1}}, 1 << 18, 8));
  swapped.heads = swapped.kv_heads = 8;
  for (RingCall& call : calls) {
    const Layouts layouts = *ChooseLayout(call);
    call.shape.batch = 7;
    call.shape.head_dim = 80;
    const Layouts others = *ChooseLayout(call);
    EXPECT_EQ(others.map(), layouts.map()) << call.tokens << " tokens, " << call.ranks << " ranks";
    EXPECT_EQ(others.strategy(), layouts.strategy()) << layouts.all[0].name;
  }
}

TEST(LayoutTest, KnowsWhatFewThreadsAndWideTypesTake) {
  const RingCall call = Dilated({{2048, 1}, {1 << 20, 1}}, 1 << 20, 8);
  const auto computing = [&](const RingRates& rates) {
    const LayoutCost cost = Named(*ChooseLayout(call, rates), "tokens swapped for heads").cost;
    return cost.seconds - cost.exchange_seconds;
  };
  EXPECT_NEAR(computing(RatesOf(false, 4, 1)) / computing(RatesOf(false, 4, 8)), 8, 1e-6);
  EXPECT_GT(computing(RatesOf(true, 4, 1)), 5 * computing(RatesOf(true, 2, 1)));
}

TEST(LayoutTest, SaysWhyInALineEach) {
  const std::vector<std::string> lines =
      ChooseLayout(Dilated({{2048, 1}, {1 << 20, 1}}, 1 << 20, 8))->Explain();
  ASSERT_GE(lines.size(), 3u);
  EXPECT_THAT(lines[0],
              StartsWith("chosen: zigzag pairs of chunks, borders on multiples of 2048: "));
  EXPECT_THAT(lines[1], StartsWith("not: contiguous chunks, borders on multiples of 2048: "));
  EXPECT_THAT(lines[1], HasSubstr("busiest rank 1.8"));
}

TEST(LayoutTest, TakesTheFirstOfWhatTakesTooLongToPredict) {
  std::vector<Branch> branches;
  for (int i = 0; i < 32; ++i) branches.push_back({(int64_t{1} << 30) + i, 2 + i});
  RingCall call = Dilated(branches, int64_t{1} << 40, 1024);
  call.heads = call.kv_heads = 1024;
  const Layouts layouts = *ChooseLayout(call);
  ASSERT_EQ(layouts.all.size(), 1u);
  EXPECT_THAT(layouts.Explain()[0], HasSubstr("too many to predict"));
}

TEST(LayoutTest, RefusesWhatThePlanRefuses) {
  EXPECT_EQ(ChooseLayout(Dilated({}, 100, 2)).status().code(), absl::StatusCode::kInvalidArgument);
  RingCall call = Dilated({{4, 1}}, 100, 2);
  call.kv_heads = 3;
  EXPECT_EQ(ChooseLayout(call).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster::attention
