#include "attention/plan/block_mask.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "attention/plan/options.h"

namespace ringmaster::attention {
namespace {

using Rule = std::function<bool(int64_t head, int64_t query, int64_t key)>;

BlockMask MaskOf(const BlockMaskShape& shape, const Rule& rule) {
  return *BlockMask::Create(shape, [&](int64_t head, int64_t query, BlockRow& row) {
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if (rule(head, query, key)) row.Show(key);
    }
  });
}

bool Odd(int64_t head, int64_t query, int64_t key) { return (head + 3 * query + key) % 5 < 2; }

TEST(BlockMaskTest, ShowsWhatItWasFilledWith) {
  for (const int64_t tokens : {0, 1, 64, 100, 128, 129, 128 * 70 + 5}) {
    const BlockMaskShape shape = {.heads = 3, .tokens = tokens, .block_size = 64};
    const BlockMask mask = MaskOf(shape, Odd);
    for (int64_t head = 0; head < 3; ++head) {
      for (int64_t query = 0; query < shape.blocks(); ++query) {
        std::vector<int64_t> seen, expected;
        for (int64_t key = 0; key < shape.blocks(); ++key) {
          EXPECT_EQ(mask.visible(head, query, key), Odd(head, query, key));
          if (key < query && Odd(head, query, key)) expected.push_back(key);
        }
        ForEachBlock(mask.Row(head, query), query, [&](int64_t key) { seen.push_back(key); });
        EXPECT_EQ(seen, expected);
      }
    }
  }
}

TEST(BlockMaskTest, OneHeadStandsForAll) {
  const BlockMask mask = MaskOf({.tokens = 1000}, Odd);
  EXPECT_EQ(mask.Row(7, 3), mask.Row(0, 3));
}

TEST(BlockMaskTest, RangesAreTheirBlocks) {
  const BlockMaskShape shape = {.tokens = 128 * 200};
  const BlockMask one = *BlockMask::Create(
      shape, [](int64_t, int64_t query, BlockRow& row) { row.ShowRange(query / 2, query); });
  EXPECT_EQ(one, MaskOf(shape, [](int64_t, int64_t query, int64_t key) {
              return key >= query / 2 && key < query;
            }));
}

// Counted pair by pair.
TEST(BlockMaskTest, DensityCountsPairsOfTokens) {
  for (const int64_t tokens : {1, 127, 200, 256, 300}) {
    const BlockMask mask = MaskOf({.heads = 2, .tokens = tokens}, Odd);
    for (const bool causal : {true, false}) {
      double pairs = 0, all = 0;
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t query = 0; query < tokens; ++query) {
          for (int64_t key = 0; key < (causal ? query + 1 : tokens); ++key) {
            pairs += Odd(head, query / 128, key / 128) ? 1 : 0;
            all += 1;
          }
        }
      }
      EXPECT_DOUBLE_EQ(mask.Density(causal), pairs / all) << tokens;
    }
  }
  EXPECT_EQ(MaskOf({.tokens = 0}, Odd).Density(true), 0);
}

TEST(BlockMaskTest, KnowsWhetherAQueryIsLeftWithoutKeys) {
  const auto rows = [](const Rule& rule) { return MaskOf({.heads = 2, .tokens = 300}, rule); };
  EXPECT_TRUE(rows([](int64_t, int64_t i, int64_t j) { return i == j; }).EveryQuerySees(true));
  const BlockMask later = rows([](int64_t, int64_t, int64_t j) { return j == 2; });
  EXPECT_TRUE(later.EveryQuerySees(false));
  EXPECT_FALSE(later.EveryQuerySees(true));
  EXPECT_FALSE(rows([](int64_t head, int64_t i, int64_t) {
                 return head == 0 || i != 1;
               }).EveryQuerySees(false));
}

TEST(BlockMaskTest, EqualMasksAreEqualWhereverTheyWereMade) {
  const BlockMaskShape shape = {.heads = 2, .tokens = 1000};
  const BlockMask one = MaskOf(shape, Odd), two = MaskOf(shape, Odd);
  EXPECT_EQ(one, two);
  EXPECT_EQ(one.hash(), two.hash());
  EXPECT_EQ(one.bytes(), two.bytes());
  EXPECT_GE(one.bytes(), 2u * 8 * 8);
  EXPECT_NE(one, MaskOf(shape, [](int64_t head, int64_t i, int64_t j) {
              return Odd(head, i, j) != (head == 1 && i == 7 && j == 7);
            }));
  // The same bits.
  EXPECT_NE(one, MaskOf({.heads = 2, .tokens = 1001}, Odd));
}

TEST(BlockMaskTest, RefusesWhatIsNoMaskAndNamesTheField) {
  const struct {
    BlockMaskShape shape;
    const char* message;
  } kRows[] = {
      {{.heads = 0, .tokens = 5}, "heads of the block mask is 0"},
      {{.tokens = -1}, "tokens of the block mask is -1"},
      {{.tokens = 5, .block_size = 32}, "block_size of the block mask is 32"},
      {{.tokens = int64_t{1} << 62}, "more than 16 GiB"},
  };
  for (const auto& row : kRows) {
    const auto mask = BlockMask::Create(row.shape, [](int64_t, int64_t, BlockRow&) {});
    EXPECT_EQ(mask.status().code(), absl::StatusCode::kInvalidArgument) << row.message;
    EXPECT_NE(mask.status().message().find(row.message), std::string::npos) << mask.status();
  }
}

TEST(BlockMaskTest, OptionsRefuseAMaskOfAnotherProblem) {
  BlockSparseAttentionOptions options = {.mask = MaskOf({.heads = 2, .tokens = 1000}, Odd)};
  EXPECT_TRUE(options.Validate(1000, 2).ok());
  EXPECT_NE(options.Validate(999, 2).message().find("tokens of the block mask is 1000"),
            std::string::npos);
  EXPECT_NE(options.Validate(1000, 4).message().find("heads of the block mask is 2"),
            std::string::npos);
  options.scale = 1.0 / 0.0;
  EXPECT_NE(options.Validate(1000, 2).message().find("scale is inf"), std::string::npos);
  EXPECT_TRUE(BlockSparseAttentionOptions{.mask = MaskOf({.tokens = 9}, Odd)}.Validate(9, 4).ok());
}

TEST(BlockMaskTest, TheFirstTokensAreAMaskOfTheirOwn) {
  const BlockMask mask =
      *BlockMask::Create({.heads = 2, .tokens = 9000, .block_size = 64},
                         [](int64_t head, int64_t query, BlockRow& row) {
                           for (int64_t key = head; key < 141; key += 1 + query % 5) row.Show(key);
                         });
  for (const int64_t tokens : {0, 1, 64, 65, 4095, 8999, 9000}) {
    const BlockMask first = mask.FirstTokens(tokens);
    const int64_t blocks = (tokens + 63) / 64;
    EXPECT_EQ(first.shape().tokens, tokens);
    int64_t pairs = 0;
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t query = 0; query < blocks; ++query) {
        for (int64_t key = 0; key < blocks; ++key) {
          EXPECT_EQ(first.visible(head, query, key), mask.visible(head, query, key));
          pairs += mask.visible(head, query, key);
        }
      }
    }
    EXPECT_EQ(first.Pairs(), pairs);
  }
  EXPECT_EQ(mask.FirstTokens(9000), mask);
}

TEST(BlockMaskTest, SomeHeadsAreAMaskOfTheirOwn) {
  const BlockMaskShape shape = {.heads = 5, .tokens = 1000, .block_size = 64};
  const BlockMask some = MaskOf(shape, Odd).Heads(1, 3).Heads(1, 2);
  const BlockMask same =
      MaskOf({.heads = 2, .tokens = 1000, .block_size = 64},
             [](int64_t head, int64_t query, int64_t key) { return Odd(head + 2, query, key); });
  EXPECT_EQ(some, same);
  EXPECT_EQ(some.hash(), same.hash());
  EXPECT_EQ(some.Pairs(), same.Pairs());
  EXPECT_EQ(some.Density(true), same.Density(true));
  EXPECT_FALSE(some == MaskOf(shape, Odd).Heads(1, 2));
}

}  // namespace
}  // namespace ringmaster::attention
