#include "attention/plan/plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <tuple>
#include <variant>

#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

TEST(OptionsTest, RefusesWhatIsNotABranchAndNamesIt) {
  const struct {
    const char* name;
    std::vector<Branch> branches;
    const char* message;
  } kRows[] = {
      {"none", {}, "no branch"},
      {"segment zero", {{4, 1}, {0, 1}}, "segment_length of branch 1 is 0"},
      {"rate zero", {{4, 0}}, "dilation_rate of branch 0 is 0"},
      {"rate above the segment", {{4, 5}}, "above its segment_length 4"},
  };
  for (const auto& row : kRows) {
    const absl::Status status = DilatedAttentionOptions{.branches = row.branches}.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.name;
    EXPECT_NE(status.message().find(row.message), std::string::npos) << status;
  }
  DilatedAttentionOptions options{.branches = {{int64_t{1} << 62, int64_t{1} << 61}}};
  EXPECT_TRUE(options.Validate().ok());
  options.scale = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(options.Validate().ok());
}

TEST(OptionsTest, OffsetsFollowThePaperAndTorchscale) {
  std::vector<int64_t> paper, torchscale;
  for (int head = 0; head < 4; ++head) {
    paper.push_back(HeadOffset(OffsetMode::kPaper, head, 4, 2));
    torchscale.push_back(HeadOffset(OffsetMode::kTorchscale, head, 4, 2));
  }
  EXPECT_EQ(paper, (std::vector<int64_t>{0, 1, 0, 1}));
  EXPECT_EQ(torchscale, (std::vector<int64_t>{0, 0, 1, 1}));
  EXPECT_EQ(HeadOffset(OffsetMode::kTorchscale, 3, 4, std::numeric_limits<int64_t>::max()), 3);
  // ceil(3 / 2) heads share an offset.
  EXPECT_EQ(HeadOffset(OffsetMode::kTorchscale, 1, 3, 2), 0);
  EXPECT_EQ(HeadOffset(OffsetMode::kTorchscale, 2, 3, 2), 1);
}

TEST(ShardMapTest, ContiguousCoversEveryTokenOnceForAnyNumberOfRanks) {
  for (int64_t tokens : {0, 1, 3, 7, 64, 1000}) {
    for (int ranks : {1, 2, 3, 5, 8, 13}) {
      for (int64_t align : {1, 4, 64}) {
        const ShardMap map = ShardMap::Contiguous(tokens, ranks, align);
        int64_t next = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          for (const TokenRange& range : map.Ranges(rank)) {
            EXPECT_EQ(range.begin, next);
            EXPECT_LT(range.begin, range.end);
            EXPECT_TRUE(tokens / align < ranks || range.begin % align == 0);
            next = range.end;
          }
        }
        EXPECT_EQ(next, tokens);
      }
    }
  }
  EXPECT_EQ(
      ShardMap::Contiguous(std::numeric_limits<int64_t>::max(), 1000, 4096).LocalTokens(999) > 0,
      true);
}

TEST(ShardMapTest, ZigzagGivesEachRankAnEarlyAndALateChunk) {
  EXPECT_EQ(ShardMap::Zigzag(80, 4, 5),
            *ShardMap::FromRanges(
                80, {{{0, 10}, {70, 80}}, {{10, 20}, {60, 70}}, {{20, 30}, {50, 60}}, {{30, 50}}}));
  // FromRanges says whether each token is held once.
  for (int64_t tokens : {0, 1, 3, 7, 64, 1000}) {
    for (int ranks : {1, 2, 3, 8}) {
      const ShardMap map = ShardMap::Zigzag(tokens, ranks, 4);
      std::vector<std::vector<TokenRange>> ranges;
      for (int rank = 0; rank < ranks; ++rank) {
        ranges.emplace_back(map.Ranges(rank).begin(), map.Ranges(rank).end());
      }
      EXPECT_EQ(*ShardMap::FromRanges(tokens, ranges), map);
    }
  }
}

TEST(ShardMapTest, FromRangesRefusesHolesAndOverlaps) {
  EXPECT_TRUE(ShardMap::FromRanges(8, {{{0, 2}, {6, 8}}, {{2, 6}}}).ok());
  EXPECT_FALSE(ShardMap::FromRanges(8, {{{0, 2}}, {{3, 8}}}).ok());
  EXPECT_FALSE(ShardMap::FromRanges(8, {{{0, 4}}, {{3, 8}}}).ok());
  EXPECT_FALSE(ShardMap::FromRanges(8, {{{0, 4}}, {{4, 7}}}).ok());
  EXPECT_FALSE(ShardMap::FromRanges(8, {{{4, 8}, {0, 4}}}).ok());
  EXPECT_FALSE(ShardMap::FromRanges(8, {}).ok());
}

using Row = std::tuple<int, int64_t, int>;  // branch, token, kv head

// The rows that must travel, straight from the definition: by looking at every pair of a query and
// a key.
std::multiset<Row> RowsByDefinition(const AttentionPlan& plan, int from, int to) {
  const auto& options = std::get<DilatedAttentionOptions>(plan.pattern());
  std::set<std::tuple<int, int64_t, int, int64_t>> needed;
  const auto positions_from = plan.map().Positions(from);
  for (const TokenRange& range : plan.map().Ranges(to)) {
    for (int64_t t = range.begin; t < range.end; ++t) {
      for (int head = 0; head < plan.heads(); ++head) {
        for (size_t i = 0; i < options.branches.size(); ++i) {
          const int64_t w = ClampedSegmentLength(options.branches[i], plan.map().tokens());
          const int64_t r = options.branches[i].dilation_rate;
          const int64_t offset = HeadOffset(options.offset_mode, head, plan.heads(), r);
          if (t % w % r != offset) continue;
          for (const int64_t key : positions_from) {
            const bool own_range = from == to && key >= range.begin && key < range.end;
            const bool visible = key / w == t / w && key % w % r == offset &&
                                 (!options.causal || key <= t) && !own_range;
            if (visible) {
              needed.emplace(i, key, head / (plan.heads() / plan.kv_heads()), offset);
            }
          }
        }
      }
    }
  }
  std::multiset<Row> rows;
  for (const auto& [branch, key, kv_head, offset] : needed) rows.emplace(branch, key, kv_head);
  return rows;
}

TEST(AttentionPlanTest, SendsExactlyTheRowsThatRemoteQueriesSee) {
  std::vector<ShardMap> maps;
  for (int64_t tokens : {1, 5, 24, 37}) {
    for (int ranks : {1, 2, 3, 5, 8}) maps.push_back(ShardMap::Contiguous(tokens, ranks, 1));
  }
  maps.push_back(*ShardMap::FromRanges(32, {{{0, 8}, {24, 32}}, {{8, 24}}}));
  maps.push_back(
      *ShardMap::FromRanges(37, {{{0, 5}, {30, 37}}, {}, {{5, 11}, {20, 30}}, {{11, 20}}}));
  for (const ShardMap& map : maps) {
    for (bool causal : {true, false}) {
      for (OffsetMode mode : {OffsetMode::kPaper, OffsetMode::kTorchscale}) {
        const AttentionPlan plan = *AttentionPlan::Create(
            DilatedAttentionOptions{.branches = {{4, 1}, {10, 3}, {1000, 4}, {7, 7}},
                                    .causal = causal,
                                    .offset_mode = mode},
            map, 6, 3);
        for (int from = 0; from < map.ranks(); ++from) {
          for (int to = 0; to < map.ranks(); ++to) {
            std::multiset<Row> rows;
            for (const RowRun& run : plan.Runs(from, to)) {
              for (int64_t i = 0; i < run.count; ++i) {
                rows.emplace(run.branch, run.first + i * run.step, run.kv_head);
              }
            }
            EXPECT_EQ(rows, RowsByDefinition(plan, from, to))
                << map.tokens() << " tokens, " << map.ranks() << " ranks, " << from << "->" << to;
          }
        }
      }
    }
  }
}

BlockSparseAttentionOptions SomeBlocks(int64_t tokens, int64_t heads, bool causal) {
  const BlockMaskShape shape = {.heads = heads, .tokens = tokens, .block_size = 64};
  return {.mask = *BlockMask::Create(shape,
                                     [&](int64_t head, int64_t query, BlockRow& row) {
                                       for (int64_t key = 0; key < shape.blocks(); ++key) {
                                         if ((head + 2 * query + key) % 3 == 0) row.Show(key);
                                       }
                                     }),
          .causal = causal};
}

std::vector<ShardMap> MapsOfBlocks() {
  std::vector<ShardMap> maps;
  for (int64_t tokens : {1, 63, 300}) {
    for (int ranks : {1, 2, 3, 8}) maps.push_back(ShardMap::Contiguous(tokens, ranks, 1));
  }
  maps.push_back(ShardMap::Contiguous(300, 3, 64));
  // Two ranks in turn within a block.
  maps.push_back(*ShardMap::FromRanges(
      300, {{{0, 70}, {80, 90}, {110, 128}, {250, 300}}, {{70, 80}, {90, 110}, {128, 250}}, {}}));
  return maps;
}

TEST(AttentionPlanTest, SendsExactlyTheRowsThatRemoteQueriesSeeThroughAMask) {
  for (const ShardMap& map : MapsOfBlocks()) {
    for (const int64_t heads : {1, 4}) {
      for (const bool causal : {true, false}) {
        const BlockSparseAttentionOptions blocks = SomeBlocks(map.tokens(), heads, causal);
        const AttentionPlan plan = *AttentionPlan::Create(blocks, map, 4, 2);
        for (int from = 0; from < map.ranks(); ++from) {
          for (int to = 0; to < map.ranks(); ++to) {
            std::set<Row> needed;
            for (int head = 0; head < 4 && from != to; ++head) {
              for (const int64_t t : map.Positions(to)) {
                for (const int64_t key : map.Positions(from)) {
                  if (blocks.mask.visible(head, t / 64, key / 64) && (!causal || key <= t))
                    needed.emplace(0, key, head / 2);
                }
              }
            }
            std::multiset<Row> rows;
            for (const RowRun& run : plan.Runs(from, to)) {
              EXPECT_EQ(run.first / 64, run.segment);
              for (int64_t i = 0; i < run.count; ++i) rows.emplace(0, run.first + i, run.kv_head);
            }
            EXPECT_EQ(rows, std::multiset<Row>(needed.begin(), needed.end()))
                << map.tokens() << " tokens, " << map.ranks() << " ranks, " << from << "->" << to;
          }
        }
      }
    }
  }
}

TEST(AttentionPlanTest, FlopsCountWhatAMaskShows) {
  for (const ShardMap& map : MapsOfBlocks()) {
    for (const bool causal : {true, false}) {
      const BlockSparseAttentionOptions blocks = SomeBlocks(map.tokens(), 2, causal);
      const AttentionPlan plan = *AttentionPlan::Create(blocks, map, 2, 1);
      const auto tokens = static_cast<double>(map.tokens());
      double flops = 0;
      for (int rank = 0; rank < map.ranks(); ++rank) {
        flops += plan.ForwardFlops(rank, {.batch = 3, .head_dim = 5});
      }
      const double all = causal ? tokens * (tokens + 1) / 2 : tokens * tokens;
      EXPECT_NEAR(flops, 4 * 3 * 5 * 2 * all * blocks.mask.Density(causal), 1e-6 * all);
    }
  }
}

TEST(AttentionPlanTest, RefusesAMaskOfAnotherSequence) {
  const auto plan =
      AttentionPlan::Create(SomeBlocks(300, 1, true), ShardMap::Contiguous(301, 2, 1), 4, 2);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(plan.status().message().find("tokens of the block mask is 300"), std::string::npos);
}

TEST(AttentionPlanTest, BytesFollowTheRows) {
  const AttentionPlan plan = *AttentionPlan::Create(
      DilatedAttentionOptions{.branches = {{4, 1}, {16, 2}}}, ShardMap::Contiguous(16, 2, 4), 4, 2);
  const MessageShape shape{.batch = 3, .head_dim = 8, .element_bytes = 2, .gradient_bytes = 4};
  // Branch (16, 2): each of 2 kv heads is read at both offsets, 4 rows of rank 0 each.
  EXPECT_EQ(plan.Rows(0, 1), 16);
  EXPECT_EQ(plan.Rows(1, 0), 0);
  EXPECT_EQ(plan.SentBytesForward(0, shape), 16u * 2 * 3 * 8 * 2);
  EXPECT_EQ(plan.SentBytesBackward(0, shape), 0u);
  EXPECT_EQ(plan.SentBytesBackward(1, shape), 16u * 2 * 3 * 8 * 4);
}

TEST(AttentionPlanTest, FlopsCountVisiblePairs) {
  const AttentionPlan plan =
      *AttentionPlan::Create(DilatedAttentionOptions{.branches = {{4, 1}, {100, 3}}},
                             ShardMap::Contiguous(11, 2, 1), 2, 2);
  double pairs = 0;
  for (int head = 0; head < 2; ++head) {
    for (int64_t t = 0; t < 11; ++t) {
      for (int64_t key = 0; key <= t; ++key) {
        pairs += key / 4 == t / 4 ? 1 : 0;
        pairs += t % 3 == head && key % 3 == head ? 1 : 0;
      }
    }
  }
  const MessageShape shape{.batch = 1, .head_dim = 5};
  EXPECT_DOUBLE_EQ(plan.ForwardFlops(0, shape) + plan.ForwardFlops(1, shape), pairs * 4 * 5);
}

}  // namespace
}  // namespace ringmaster::attention
