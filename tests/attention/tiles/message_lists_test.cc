// Lists of what travels, against the sets that they are made of.
#include "attention/tiles/message_lists.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

RankParts::Message Rows(std::vector<RowSet> sets) {
  RankParts::Message message{.local = std::move(sets)};
  for (const RowSet& set : message.local) message.rows += set.rows();
  return message;
}

RowSet Set(std::vector<Run> runs) {
  RowSet set{.runs = std::move(runs)};
  for (const Run& run : set.runs) set.rows_per_group += run.count;
  set.group_begin.push_back(set.runs.size());
  return set;
}

TEST(MessageListsTest, NumbersPlacesAndTheRowsThatComeBackToThem) {
  RankParts rank;
  rank.kept = Rows({Set({{.first = 5, .step = 1, .count = 1, .head = 1}})});
  // Two branches, to one peer, that share a row; one of another peer is kept, too.
  rank.outgoing = {Rows({Set({{.first = 0, .step = 2, .count = 2, .head = 0}}),
                         Set({{.first = 2, .step = 1, .count = 1, .head = 0}})}),
                   Rows({Set({{.first = 5, .step = 1, .count = 1, .head = 1}})})};
  const MessageLists lists = MakeMessageLists(rank, 2);
  EXPECT_THAT(lists.kept, ElementsAre(11));
  EXPECT_THAT(lists.sent, ElementsAre(0, 4, 4, 11));
  EXPECT_THAT(lists.places, ElementsAre(0, 4, 11));
  EXPECT_THAT(lists.begin, ElementsAre(0, 1, 3, 5));
  EXPECT_THAT(lists.rows, ElementsAre(1, 2, 3, 0, 4));
}

TEST(MessageListsTest, ARingOfOneHasNone) {
  const MessageLists lists = MakeMessageLists({}, 4);
  EXPECT_THAT(lists.places, IsEmpty());
  EXPECT_THAT(lists.begin, IsEmpty());
  EXPECT_THAT(lists.rows, IsEmpty());
}

// Of a real plan: every row of both messages once, at its own place, in order.
TEST(MessageListsTest, EveryRowComesBackOnce) {
  const DilatedAttentionOptions options{.branches = {{64, 1}, {512, 4}, {1 << 20, 8}}};
  constexpr int kHeads = 6, kKvHeads = 3;
  for (int rank = 0; rank < 4; ++rank) {
    const auto plan = AttentionPlan::Create(options, ShardMap::Zigzag(999, 4, 1), kHeads, kKvHeads);
    ASSERT_TRUE(plan.ok());
    const MessageLists lists = MakeMessageLists(MakeRankParts(*plan, rank), kKvHeads);
    ASSERT_GT(lists.sent.size(), 0);
    std::vector<uint32_t> all = lists.kept;
    all.insert(all.end(), lists.sent.begin(), lists.sent.end());
    ASSERT_EQ(lists.rows.size(), all.size());
    ASSERT_EQ(lists.begin.size(), lists.places.size() + 1);
    ASSERT_EQ(lists.begin.back(), all.size());
    std::vector<int> seen(all.size());
    for (size_t i = 0; i < lists.places.size(); ++i) {
      ASSERT_LT(lists.begin[i], lists.begin[i + 1]);
      ASSERT_TRUE(i == 0 || lists.places[i - 1] < lists.places[i]);
      for (uint32_t j = lists.begin[i]; j < lists.begin[i + 1]; ++j) {
        ASSERT_TRUE(j == lists.begin[i] || lists.rows[j - 1] < lists.rows[j]);
        ASSERT_EQ(all[lists.rows[j]], lists.places[i]);
        ++seen[lists.rows[j]];
      }
    }
    EXPECT_THAT(seen, testing::Each(1));
  }
}

}  // namespace
}  // namespace ringmaster::attention
