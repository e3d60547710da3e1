#include "attention/plan/block_patterns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>

namespace ringmaster::attention {
namespace {

using Kind = BlockPattern::Kind;

const Kind kKinds[] = {Kind::kLocalWindow, Kind::kDilatedSparse, Kind::kGlobalLocal,
                       Kind::kHierarchical, Kind::kRandom};
const char* const kKindNames[] = {"local window", "dilated sparse", "global-local", "hierarchical",
                                  "random"};

// Those that choose block by block come closer than those of one size.
bool Chooses(Kind kind) { return kind == Kind::kHierarchical || kind == Kind::kRandom; }

BlockMask MaskOf(const BlockPattern& pattern, int64_t tokens, int ranks = 4,
                 int ranks_per_node = 2) {
  return *MakeBlockMask(pattern, ShardMap::Contiguous(tokens, ranks, 1), ranks_per_node);
}

bool EveryBlockSeesItself(const BlockMask& mask) {
  for (int64_t head = 0; head < mask.shape().heads; ++head) {
    for (int64_t block = 0; block < mask.shape().blocks(); ++block) {
      if (!mask.visible(head, block, block)) return false;
    }
  }
  return true;
}

TEST(BlockPatternsTest, ComeCloseToTheirDensity) {
  for (size_t i = 0; i < std::size(kKinds); ++i) {
    for (const bool causal : {true, false}) {
      for (const double density : {1.0, 0.5, 0.25, 0.1, 0.05}) {
        const BlockPattern pattern = {
            .kind = kKinds[i], .density = density, .causal = causal, .heads = 2};
        const BlockMask mask = MaskOf(pattern, 128 * 512);
        const double achieved = mask.Density(causal);
        std::printf("%-14s %s %.2f: %.4f\n", kKindNames[i], causal ? "causal" : "full  ", density,
                    achieved);
        // A size more is two blocks more of 512, with the distances of dilated ones up to ten.
        const double step = kKinds[i] == Kind::kDilatedSparse ? 10.0 / 512 : 2.0 / 512;
        EXPECT_NEAR(achieved, density, Chooses(kKinds[i]) ? 1e-4 : step / 2 + 1e-9);
        EXPECT_TRUE(EveryBlockSeesItself(mask));
        EXPECT_EQ(mask.shape().heads, Chooses(kKinds[i]) ? 2 : 1);
        if (causal) {
          EXPECT_EQ(mask.Density(false) * 65536.0 * 65536.0,
                    achieved * 65536.0 * 65537 / 2 + 512 * 128.0 * 127 / 2)
              << "shows what is behind a query";
        }
      }
    }
  }
}

TEST(BlockPatternsTest, TakeAnySequence) {
  for (const Kind kind : kKinds) {
    for (const int64_t tokens : {0, 1, 63, 64, 65, 700}) {
      for (const bool causal : {true, false}) {
        for (const double density : {1e-9, 0.3, 1.0}) {
          const BlockMask mask = MaskOf(
              {.kind = kind, .density = density, .causal = causal, .heads = 3, .block_size = 64},
              tokens, 5);
          EXPECT_TRUE(EveryBlockSeesItself(mask));
          EXPECT_TRUE(mask.EveryQuerySees(causal));
          EXPECT_TRUE(density < 1 || tokens == 0 || mask.Density(causal) == 1);
        }
      }
    }
  }
}

TEST(BlockPatternsTest, WindowsAreNear) {
  const BlockMask mask = MaskOf({.density = 0.1, .causal = false}, 128 * 100);
  for (int64_t query = 0; query < 100; ++query) {
    for (int64_t key = 0; key < 100; ++key) {
      EXPECT_EQ(mask.visible(0, query, key), std::abs(query - key) <= 5);
    }
  }
}

TEST(BlockPatternsTest, DilatedOnesReachFar) {
  const BlockMask mask = MaskOf({.kind = Kind::kDilatedSparse, .density = 0.06}, 128 * 512);
  std::string row;
  for (int64_t away = 0; away < 512; ++away) {
    if (mask.visible(0, 511, 511 - away)) row += std::to_string(away) + " ";
  }
  EXPECT_EQ(row, "0 1 2 3 4 6 8 12 16 24 32 48 64 96 128 192 256 384 ");
}

TEST(BlockPatternsTest, GlobalBlocksAreSeenByAllAndSeeAll) {
  const BlockMask mask =
      MaskOf({.kind = Kind::kGlobalLocal, .density = 0.1, .causal = false}, 128 * 100);
  for (int64_t block = 0; block < 100; ++block) {
    EXPECT_TRUE(mask.visible(0, block, 0));
    EXPECT_TRUE(mask.visible(0, 0, block));
  }
  EXPECT_FALSE(mask.visible(0, 50, 99));
}

// Four ranks on two nodes, of which the second has the first half.
TEST(BlockPatternsTest, HierarchiesFollowTheTopology) {
  const int64_t half = 128 * 64;
  const ShardMap map = *ShardMap::FromRanges(
      2 * half, {{{half, half + 1000}}, {{half + 1000, 2 * half}}, {{0, 100}}, {{100, half}}});
  for (const double density : {0.05, 0.3, 0.7}) {
    const BlockMask mask =
        *MakeBlockMask({.kind = Kind::kHierarchical, .density = density, .causal = false}, map, 2);
    double seen[2] = {0, 0};
    for (int64_t query = 0; query < 128; ++query) {
      for (int64_t key = 0; key < 128; ++key) {
        seen[query / 64 == key / 64 ? 0 : 1] += mask.visible(0, query, key) ? 1 : 0;
      }
    }
    if (density > 0.57) {
      EXPECT_EQ(seen[0], 64 * 64 * 2);
    } else {
      // Beside the diagonal.
      EXPECT_NEAR(seen[1], (seen[0] - 128) / 8, 20);
    }
    EXPECT_NEAR(mask.Density(false), density, 1e-3);
    EXPECT_GT(seen[1], 0);
  }
  // One node has nobody to be far from.
  const BlockMask one = *MakeBlockMask({.kind = Kind::kHierarchical, .density = 0.3}, map, 4);
  EXPECT_NE(one, *MakeBlockMask({.kind = Kind::kHierarchical, .density = 0.3}, map, 2));
}

TEST(BlockPatternsTest, RandomOnesDependOnSeedHeadAndRow) {
  BlockPattern pattern = {.kind = Kind::kRandom, .density = 0.3, .heads = 2};
  const BlockMask mask = MaskOf(pattern, 128 * 60);
  EXPECT_EQ(mask, MaskOf(pattern, 128 * 60, 7, 3));
  int same_heads = 0;
  for (int64_t query = 8; query < 60; ++query) {
    same_heads += mask.Row(0, query) == mask.Row(1, query) ? 1 : 0;
  }
  EXPECT_LE(same_heads, 2);
  pattern.seed = 1;
  EXPECT_NE(mask, MaskOf(pattern, 128 * 60));
}

// Every machine must draw these: a peer's mask is not compared.
TEST(BlockPatternsTest, RandomOnesAreTheSameForEver) {
  const BlockMask mask = MaskOf({.kind = Kind::kRandom, .density = 0.4, .seed = 7}, 128 * 16);
  std::string rows;
  for (int64_t query = 12; query < 16; ++query) {
    for (int64_t key = 0; key < 16; ++key) rows += mask.visible(0, query, key) ? 'x' : '.';
    rows += '\n';
  }
  EXPECT_EQ(rows,
            "xxx...x....xx...\n"
            "..x.x..x....xx..\n"
            "..xx...x..xx..x.\n"
            "....xx...xxx.x.x\n");
}

TEST(BlockPatternsTest, EveryNameMakesAMask) {
  for (const std::string& name : BlockPatternNames()) {
    const auto pattern = FindBlockPattern(name);
    ASSERT_TRUE(pattern.ok()) << name;
    const BlockMask mask = MaskOf(*pattern, 128 * 512);
    EXPECT_NEAR(mask.Density(pattern->causal), pattern->density, 0.01) << name;
    EXPECT_EQ(std::lround(pattern->density * 100),
              std::stoi(name.substr(name.find_last_of('_') + 1)))
        << name;
  }
  const absl::Status unknown = FindBlockPattern("hilbert").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& name : BlockPatternNames()) {
    EXPECT_NE(unknown.message().find(name), std::string::npos) << unknown;
  }
}

TEST(BlockPatternsTest, RefusesWhatIsNoPatternAndNamesTheField) {
  const ShardMap map = ShardMap::Contiguous(1000, 2, 1);
  const auto message = [&](const BlockPattern& pattern, int ranks_per_node = 1) {
    return std::string(MakeBlockMask(pattern, map, ranks_per_node).status().message());
  };
  for (const double density : {0.0, -1.0, 1.5, std::nan("")}) {
    EXPECT_EQ(message({.density = density}).find("density of the block pattern is"), 0u);
  }
  EXPECT_EQ(message({.block_size = 100}).find("block_size"), 0u);
  EXPECT_EQ(message({.heads = 0}).find("heads"), 0u);
  EXPECT_EQ(message({}, 0).find("ranks_per_node"), 0u);
  EXPECT_EQ(MakeBlockMask({.kind = Kind::kHierarchical}, 1000).status().message().find("kind"), 0u);
  EXPECT_EQ(*MakeBlockMask({.kind = Kind::kRandom}, 1000),
            *MakeBlockMask({.kind = Kind::kRandom}, map, 1));
}

}  // namespace
}  // namespace ringmaster::attention
