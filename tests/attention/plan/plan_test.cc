#include "attention/plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <variant>

#include "attention/plan/head_shares.h"

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

TEST(OptionsTest, RefusesDocumentsThatDoNotAscendWithinTheSequenceAndNamesThem) {
  const struct {
    Documents documents;
    const char* message;  // empty: fine
  } kRows[] = {
      {{}, ""},
      {{0}, ""},
      {{0, 3, 9}, ""},
      {{1, 3}, "documents[0] is 1; the first document starts at token 0"},
      {{0, 3, 3}, "documents[2] is 3; it must be above the one before it, 3"},
      {{0, 7, 3}, "documents[2] is 3; it must be above the one before it, 7"},
      {{0, 10}, "documents[1] is 10; the sequence has 10 tokens"},
  };
  const BlockMask mask = *BlockMask::Create({.tokens = 10}, [](int64_t, int64_t, BlockRow&) {});
  for (const auto& row : kRows) {
    for (const AttentionPattern& pattern : {AttentionPattern(DilatedAttentionOptions{
                                                .branches = {{4, 1}}, .documents = row.documents}),
                                            AttentionPattern(BlockSparseAttentionOptions{
                                                .mask = mask, .documents = row.documents})}) {
      const absl::Status status = Validate(pattern, 10, 4);
      EXPECT_EQ(status.message(), row.message);
    }
  }
}

TEST(OptionsTest, RefusesHeadsOutsideOfTheirShare) {
  DilatedAttentionOptions options{.branches = {{4, 1}}, .share = {.first = 2, .of = 5}};
  EXPECT_TRUE(Validate(options, 10, 3).ok());
  EXPECT_EQ(Validate(options, 10, 4).message(), "share is of heads 2 and up of 5; there are 4");
  options.share.first = -1;
  EXPECT_FALSE(Validate(options, 10, 1).ok());
  options.share = {};
  EXPECT_TRUE(Validate(options, 10, 100).ok());
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

TEST(ShardMapTest, JoinsRangesThatTouch) {
  EXPECT_EQ(ShardMap::Contiguous(10, 5, 2).Join({{0, 1, 3}, {}, {2, 4}}),
            *ShardMap::FromRanges(10, {{{0, 4}, {6, 8}}, {}, {{4, 6}, {8, 10}}}));
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

int64_t StartOf(const Documents& documents, int64_t token) {
  int64_t start = 0;
  for (const int64_t document : documents) start = document <= token ? document : start;
  return start;
}

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
          const int64_t w = options.branches[i].segment_length;
          const int64_t r = options.branches[i].dilation_rate;
          const int64_t offset = HeadOffset(options.offset_mode, head, plan.heads(), r);
          const int64_t start = StartOf(options.documents, t);
          if ((t - start) % w % r != offset) continue;
          for (const int64_t key : positions_from) {
            const bool own_range = from == to && key >= range.begin && key < range.end;
            const int64_t position = key - start;
            const bool visible = StartOf(options.documents, key) == start &&
                                 position / w == (t - start) / w && position % w % r == offset &&
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

Documents Within(int64_t tokens, Documents documents) {
  documents.erase(std::lower_bound(documents.begin(), documents.end(), tokens), documents.end());
  return documents;
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
      for (int variant = 0; variant < 4; ++variant) {
        // Some lie within ranges, some across several, some are of one token.
        const Documents documents =
            variant < 2 ? Documents{} : Within(map.tokens(), {0, 1, 2, 9, 26});
        const AttentionPlan plan = *AttentionPlan::Create(
            DilatedAttentionOptions{
                .branches = {{4, 1}, {10, 3}, {1000, 4}, {7, 7}},
                .causal = causal,
                .offset_mode = variant % 2 == 0 ? OffsetMode::kPaper : OffsetMode::kTorchscale,
                .documents = documents},
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

BlockSparseAttentionOptions SomeBlocks(int64_t tokens, int64_t heads, bool causal,
                                       const Documents& documents = {}) {
  const BlockMaskShape shape = {.heads = heads, .tokens = tokens, .block_size = 64};
  return {.mask = *BlockMask::Create(shape,
                                     [&](int64_t head, int64_t query, BlockRow& row) {
                                       for (int64_t key = 0; key < shape.blocks(); ++key) {
                                         if ((head + 2 * query + key) % 3 == 0) row.Show(key);
                                       }
                                     }),
          .causal = causal,
          .documents = Within(tokens, documents)};
}

// Which a block has several of, or which has several blocks.
const Documents kDocuments = {0, 5, 20, 64, 85, 86, 130, 280};

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

bool Sees(const BlockSparseAttentionOptions& blocks, int head, int64_t query, int64_t key) {
  return blocks.mask.visible(head, query / 64, key / 64) && (!blocks.causal || key <= query) &&
         StartOf(blocks.documents, query) == StartOf(blocks.documents, key);
}

void CheckBlockRuns(const BlockSparseAttentionOptions& blocks, const ShardMap& map) {
  const AttentionPlan plan = *AttentionPlan::Create(blocks, map, 4, 2);
  for (int from = 0; from < map.ranks(); ++from) {
    for (int to = 0; to < map.ranks(); ++to) {
      std::set<Row> needed;
      for (int head = 0; head < 4 && from != to; ++head) {
        for (const int64_t t : map.Positions(to)) {
          for (const int64_t key : map.Positions(from)) {
            if (Sees(blocks, head, t, key)) needed.emplace(0, key, head / 2);
          }
        }
      }
      std::multiset<Row> rows;
      for (const RowRun& run : plan.Runs(from, to)) {
        EXPECT_TRUE(!blocks.documents.empty() || run.first / 64 == run.segment);
        for (int64_t i = 0; i < run.count; ++i) rows.emplace(0, run.first + i, run.kv_head);
      }
      EXPECT_EQ(rows, std::multiset<Row>(needed.begin(), needed.end()))
          << map.tokens() << " tokens, " << map.ranks() << " ranks, " << from << "->" << to;
    }
  }
}

TEST(AttentionPlanTest, SendsExactlyTheRowsThatRemoteQueriesSeeThroughAMask) {
  for (const ShardMap& map : MapsOfBlocks()) {
    for (const int64_t heads : {1, 4}) {
      for (const bool causal : {true, false}) {
        CheckBlockRuns(SomeBlocks(map.tokens(), heads, causal), map);
        CheckBlockRuns(SomeBlocks(map.tokens(), heads, causal, kDocuments), map);
      }
    }
  }
}

void CheckBlockFlops(const BlockSparseAttentionOptions& blocks, const ShardMap& map) {
  const AttentionPlan plan = *AttentionPlan::Create(blocks, map, 2, 1);
  double flops = 0, pairs = 0;
  for (int rank = 0; rank < map.ranks(); ++rank) {
    flops += plan.ForwardFlops(rank, {.batch = 3, .head_dim = 5});
  }
  for (int64_t query = 0; query < 2 * map.tokens(); ++query) {
    for (int64_t key = 0; key < map.tokens(); ++key) {
      pairs += Sees(blocks, static_cast<int>(query % 2), query / 2, key) ? 1 : 0;
    }
  }
  EXPECT_DOUBLE_EQ(flops, 4 * 3 * 5 * pairs);
}

TEST(AttentionPlanTest, FlopsCountWhatAMaskShows) {
  for (const ShardMap& map : MapsOfBlocks()) {
    for (const int64_t heads : {1, 2}) {
      for (const bool causal : {true, false}) {
        CheckBlockFlops(SomeBlocks(map.tokens(), heads, causal), map);
        CheckBlockFlops(SomeBlocks(map.tokens(), heads, causal, kDocuments), map);
      }
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

TEST(AttentionPlanTest, SharesOfHeadsAreEvenAndDoAllWork) {
  const ShardMap map = ShardMap::Contiguous(300, 3, 1);
  const HeadShares shares(map, 8, 4);
  EXPECT_EQ(shares.Of(0), (HeadShares::Share{0, 1}));
  EXPECT_EQ(shares.Of(1), (HeadShares::Share{1, 1}));
  EXPECT_EQ(shares.Of(2), (HeadShares::Share{2, 2}));
  const MessageShape shape{.batch = 3, .head_dim = 8, .element_bytes = 2, .gradient_bytes = 4};
  // 100 tokens of 4 query and 2 key and value heads; 100 tokens of 2 heads' output and sums.
  EXPECT_EQ(shares.ForwardBytes(0, 2, shape), 300u * (8 * 16 + 2 * 20));
  EXPECT_EQ(shares.BackwardBytes(0, 2, shape), 300u * (4 * 16 + 4 * 16));
  const std::vector<AttentionPattern> patterns = {
      DilatedAttentionOptions{.branches = {{64, 1}, {300, 7}}},
      DilatedAttentionOptions{.branches = {{64, 1}, {300, 7}},
                              .offset_mode = OffsetMode::kTorchscale},
      SomeBlocks(300, 8, true), SomeBlocks(300, 1, false)};
  for (const AttentionPattern& pattern : patterns) {
    double sums[2] = {};
    for (const Strategy strategy : {Strategy::kGrouped, Strategy::kHeads}) {
      const AttentionPlan plan = *AttentionPlan::Create(pattern, map, 8, 4, strategy);
      for (int rank = 0; rank < 3; ++rank) {
        sums[static_cast<int>(strategy)] += plan.ForwardFlops(rank, shape);
      }
    }
    EXPECT_DOUBLE_EQ(sums[0], sums[1]);
  }
}

TEST(AttentionPlanTest, FlopsCountVisiblePairs) {
  for (const bool causal : {true, false}) {
    for (const Documents& documents :
         {Documents{}, {0, 1, 25}, {0, 4, 8, 12, 13, 14, 15, 31}, {0, 10, 20, 30}}) {
      const AttentionPlan plan = *AttentionPlan::Create(
          DilatedAttentionOptions{
              .branches = {{4, 1}, {100, 3}}, .causal = causal, .documents = documents},
          ShardMap::Contiguous(41, 2, 1), 2, 2);
      double pairs = 0;
      for (int head = 0; head < 2; ++head) {
        for (int64_t t = 0; t < 41; ++t) {
          const int64_t start = StartOf(documents, t);
          for (int64_t key = 0; key < (causal ? t + 1 : 41); ++key) {
            if (StartOf(documents, key) != start) continue;
            pairs += (key - start) / 4 == (t - start) / 4 ? 1 : 0;
            pairs += (t - start) % 3 == head && (key - start) % 3 == head ? 1 : 0;
          }
        }
      }
      const MessageShape shape{.batch = 1, .head_dim = 5};
      EXPECT_DOUBLE_EQ(plan.ForwardFlops(0, shape) + plan.ForwardFlops(1, shape), pairs * 4 * 5);
    }
  }
}

// Whatever the number of tokens.
TEST(AttentionPlanTest, LongDocumentsCostNoMoreThanShortOnes) {
  const int64_t tokens = int64_t{1} << 60;
  const AttentionPlan plan = *AttentionPlan::Create(
      DilatedAttentionOptions{.branches = {{4096, 1}, {1 << 20, 4}, {int64_t{1} << 62, 64}},
                              .documents = {0, 3, tokens / 3, tokens - 1}},
      ShardMap::Contiguous(tokens, 4, 4096), 4, 4);
  EXPECT_GT(plan.Rows(0, 1), 0);
  EXPECT_EQ(plan.Rows(0, 2), 0);
  EXPECT_GT(plan.ForwardFlops(3, {.head_dim = 1}), 0);
}

}  // namespace
}  // namespace ringmaster::attention
