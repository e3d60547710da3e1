// What lists of tiles consist of: parts in order, windows, passes, views and spans. (What they
// compute: tile_lists_test.cc.)
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "attention/plan/plan.h"
#include "attention/tiles/tile_lists.h"
#include "tests/attention/tiles/tile_shape.h"

namespace ringmaster::attention {
namespace {

using kernels::Tile;
using kernels::TileKeys;

// By branch, whichever order the tiles have; those of the branch that covers all are none. No rates
// that divide one another.
TEST(TileListContentsTest, PartsAreInTheOrderOfMerging) {
  const auto plan = AttentionPlan::Create(
      DilatedAttentionOptions{.branches = {{300, 17}, {200, 19}, {100, 1}, {300, 17}}},
      ShardMap::Contiguous(300, 1, 1), 2, 2);
  const TileLists lists = MakeTileLists(MakeRankParts(*plan, 0), Shape(300, 2, 2, 128));
  std::vector<std::vector<int64_t>> rows(lists.parts());
  for (size_t row = 0; row < lists.slots.size(); ++row) {
    rows.at(lists.slots[row]).push_back(static_cast<int64_t>(row));
  }
  for (size_t place = 0; place + 1 < lists.merge_begin.size(); ++place) {
    for (uint32_t slot = lists.merge_begin[place]; slot < lists.merge_begin[place + 1]; ++slot) {
      ASSERT_EQ(rows[slot].size(), 1u);
      ASSERT_TRUE(slot == lists.merge_begin[place] || rows[slot][0] > rows[slot - 1][0]);
    }
  }
  EXPECT_EQ(lists.parts(), 2 * 18 * 2 + 2 * 11 + 2 * 6);
  EXPECT_EQ(lists.last.tiles.size(), 3u * 2);
}

// The passes before the last one store where they can, and a window that meets no other ends.
TEST(TileListContentsTest, WindowsAreOfTheirOwn) {
  using kernels::KeyGradients;
  struct Want {
    std::vector<Branch> branches;
    int64_t window_tokens;
    std::vector<int64_t> windows;
    std::vector<KeyGradients> gradients;
    bool zero_keys;
    int64_t key_sums;
    Documents documents = {};
  };
  const KeyGradients add = KeyGradients::kAdd, store = KeyGradients::kStore;
  const KeyGradients finish = KeyGradients::kFinish;
  for (const Want& want : std::vector<Want>{
           {{{64, 1}, {128, 4}, {256, 2}}, 0, {256, 256, 88}, {store, add, finish}, false, 600},
           {{{64, 1}, {128, 4}, {256, 2}}, 257, {512, 88}, {store, add, finish}, false, 600},
           {{{64, 1}, {128, 4}, {256, 2}}, 600, {600}, {store, add, finish}, false, 600},
           {{{60, 1}, {60, 2}, {60, 3}}, 300, {300, 300}, {add, add, finish}, true, 800},
           {{{600, 1}, {60, 1}}, 0, {600}, {store, finish}, false, 1200},
           {{{600, 1}}, 0, {600}, {finish}, false, 0},
           {{{600, 1}}, 0, {250, 50, 300}, {finish}, false, 0, {0, 250, 300}},
           {{{600, 1}}, 100, {250, 350}, {finish}, false, 0, {0, 250, 300}},
           {{{600, 2}}, 0, {600}, {add}, true, 600}}) {
    const auto plan = AttentionPlan::Create(
        DilatedAttentionOptions{.branches = want.branches, .documents = want.documents},
        ShardMap::Contiguous(600, 1, 1), 2, 2);
    TileShape shape = Shape(600, 2, 2, 64);
    shape.window_tokens = want.window_tokens;
    const TileLists lists = MakeTileLists(MakeRankParts(*plan, 0), shape);
    std::vector<int64_t> windows;
    for (const TileLists::Window& window : lists.windows) {
      windows.push_back(window.tokens);
      std::vector<KeyGradients> gradients;
      for (const TileLists::Backward& pass : window.passes) gradients.push_back(pass.key_gradients);
      EXPECT_EQ(gradients, want.gradients);
      EXPECT_EQ(window.zero_keys, want.zero_keys);
    }
    EXPECT_EQ(windows, want.windows);
    EXPECT_EQ(std::accumulate(lists.key_sums.begin(), lists.key_sums.end(), int64_t{0}),
              want.key_sums);
  }
}

// Where sums may be added in any order, one call adds them all: its tiles are those of the calls
// which it stands for.
TEST(TileListContentsTest, CallsThatAddAreOneWhereOrderIsFree) {
  using kernels::KeyGradients;
  const auto plan = AttentionPlan::Create(
      DilatedAttentionOptions{.branches = {{64, 1}, {128, 2}, {256, 4}, {512, 8}}},
      ShardMap::Contiguous(600, 1, 1), 2, 2);
  const RankParts parts = MakeRankParts(*plan, 0);
  TileShape shape = Shape(600, 2, 2, 64);
  shape.window_tokens = 600;
  const TileLists fixed = MakeTileLists(parts, shape);
  shape.deterministic = false;
  const TileLists free = MakeTileLists(parts, shape);
  const auto rows = [](const TileLists& lists) {
    // By call: of each tile's rows and of each span that sees it.
    std::vector<std::multiset<std::vector<int32_t>>> calls;
    for (const TileLists::Backward& pass : lists.windows.at(0).passes) {
      calls.emplace_back();
      for (const kernels::KeyTile& tile : pass.keys.tiles) {
        for (int32_t i = tile.queries_begin; i < tile.queries_end; ++i) {
          const TileKeys& seeing = pass.keys.queries[i];
          calls.back().insert({tile.rows.view, tile.rows.head, tile.rows.residue, tile.rows.first,
                               tile.count, seeing.rows.view, seeing.rows.residue, seeing.rows.first,
                               seeing.count, seeing.diagonal});
        }
      }
    }
    return calls;
  };
  const auto apart = rows(fixed), joined = rows(free);
  ASSERT_EQ(apart.size(), 4u);
  ASSERT_EQ(joined.size(), 3u);
  auto adding = apart[1];
  adding.insert(apart[2].begin(), apart[2].end());
  EXPECT_EQ(joined[0], apart[0]);
  EXPECT_EQ(joined[1], adding);
  EXPECT_EQ(joined[2], apart[3]);
  EXPECT_EQ(free.windows[0].passes[0].key_gradients, KeyGradients::kStore);
  EXPECT_EQ(free.windows[0].passes[1].key_gradients, KeyGradients::kAdd);
  EXPECT_EQ(free.windows[0].passes[2].key_gradients, KeyGradients::kFinish);
  EXPECT_EQ(free.key_sums, fixed.key_sums);
}

void Mark(const RowSet& set, int heads, std::vector<bool>* places) {
  for (const Run& run : set.runs) {
    for (int64_t i = 0; i < run.count; ++i) {
      (*places)[(run.first + i * run.step) * heads + run.head] = true;
    }
  }
}

// Only places with far keys are left for the peers' rows, and only keys that peers see for theirs.
TEST(TileListContentsTest, PeersAreWaitedForWhereTheyMatter) {
  const auto plan = AttentionPlan::Create(
      DilatedAttentionOptions{.branches = {{64, 1}, {128, 2}, {600, 8}}},
      *ShardMap::FromRanges(600, {{{0, 256}, {512, 600}}, {{256, 512}}}), 2, 2);
  for (int rank = 0; rank < 2; ++rank) {
    const int64_t tokens = plan->map().LocalTokens(rank);
    const RankParts parts = MakeRankParts(*plan, rank);
    const TileLists lists = MakeTileLists(parts, Shape(tokens, 2, 2, 64));
    std::vector<bool> far(tokens * 2), seen(tokens * 2);
    for (const Part& part : parts.far) Mark(part.queries, 2, &far);
    for (const RankParts::Message& message : parts.outgoing) {
      for (const RowSet& set : message.local) Mark(set, 2, &seen);
    }
    for (const RowSet& set : parts.kept.local) Mark(set, 2, &seen);
    EXPECT_FALSE(lists.far.tiles.empty());
    EXPECT_FALSE(lists.last.tiles.empty());
    ASSERT_EQ(lists.windows.size(), 1u);
    EXPECT_TRUE(lists.windows[0].finishes());
    EXPECT_FALSE(lists.windows[0].zero_keys);
    for (int64_t place = 0; place < tokens * 2; ++place) {
      EXPECT_EQ(std::binary_search(lists.mix_places.begin(), lists.mix_places.end(), place),
                far[place]);
      EXPECT_TRUE(!far[place] || lists.merge_begin.empty() ||
                  lists.merge_begin[place] == lists.merge_begin[place + 1]);
      EXPECT_EQ((lists.key_sums[place] & kernels::kSumsAfter) != 0, seen[place]);
    }
  }
}

// Of which a segment has one row, wherever it lies.
TEST(TileListContentsTest, ARateBeyondTheSequenceNeedsNoViewOfItsOwn) {
  const int64_t huge = int64_t{1} << 40;
  const auto plan =
      AttentionPlan::Create(DilatedAttentionOptions{.branches = {{8, 2}, {huge, huge}, {8, 8}}},
                            ShardMap::Contiguous(50, 1, 1), 12, 12);
  const TileLists lists = MakeTileLists(MakeRankParts(*plan, 0), Shape(50, 12, 12, 64));
  EXPECT_EQ(lists.steps, (std::vector<int64_t>{1, 2}));
}

TileLists ListsOf(const BlockMaskShape& shape, bool causal, int head_dim,
                  bool (*shows)(int64_t query, int64_t key)) {
  const BlockMask mask = *BlockMask::Create(shape, [&](int64_t, int64_t query, BlockRow& row) {
    for (int64_t key = 0; key < shape.blocks(); ++key) {
      if (shows(query, key)) row.Show(key);
    }
  });
  const auto plan =
      AttentionPlan::Create(BlockSparseAttentionOptions{.mask = mask, .causal = causal},
                            ShardMap::Contiguous(shape.tokens, 1, 1), 2, 1);
  return MakeTileLists(MakeRankParts(*plan, 0), Shape(shape.tokens, 2, 1, head_dim));
}

// A tile a block, with a span for each run of neighbours; no result is merged.
TEST(TileListContentsTest, BlocksAreTilesAndNeighboursOneSpan) {
  // x.. / xx. / x.x / xx.x
  const TileLists lists =
      ListsOf({.tokens = 500}, /*causal=*/true, 128, [](int64_t query, int64_t key) {
        return key == 0 || key == query || (query == 3 && key == 1);
      });
  EXPECT_TRUE(lists.slots.empty());
  EXPECT_TRUE(lists.merge_begin.empty());
  EXPECT_TRUE(lists.key_sums.empty());
  EXPECT_EQ(lists.steps, (std::vector<int64_t>{1}));
  ASSERT_TRUE(lists.local.tiles.empty() && lists.far.tiles.empty());
  std::vector<std::vector<int32_t>> got;
  for (const Tile& tile : lists.last.tiles) {
    if (tile.rows.head != 0) continue;
    got.push_back({tile.rows.first, tile.count});
    for (int32_t i = tile.keys_begin; i < tile.keys_end; ++i) {
      const TileKeys& keys = lists.last.keys[i];
      // Beyond the span all is visible.
      got.back().insert(got.back().end(),
                        {keys.rows.first, keys.count, std::min(keys.diagonal, keys.count - 1)});
    }
  }
  // Rows 0 and 1 are one causal problem. Heavy ones first.
  EXPECT_EQ(got, (std::vector<std::vector<int32_t>>{{384, 116, 0, 256, 255, 384, 116, 0},
                                                    {256, 128, 0, 128, 127, 256, 128, 0},
                                                    {128, 128, 0, 256, 128},
                                                    {0, 128, 0, 256, 0}}));
  // So few are the last of all: sorted whatever head they have.
  const auto keys_of = [](const Tile& tile) { return tile.keys_end - tile.keys_begin; };
  EXPECT_EQ(lists.last.tiles.size(), 8u);
  EXPECT_EQ(keys_of(lists.last.tiles[0]), keys_of(lists.last.tiles[1]));
  EXPECT_NE(lists.last.tiles[0].rows.head, lists.last.tiles[1].rows.head);
}

// Neighbours that see the same share tiles, up to what a tile holds.
TEST(TileListContentsTest, SmallBlocksShareTiles) {
  for (const auto& [head_dim, most] : {std::pair{64, 192}, {128, 128}}) {
    const TileLists lists = ListsOf({.tokens = 64 * 12, .block_size = 64}, /*causal=*/false,
                                    head_dim, [](int64_t, int64_t key) { return key % 3 != 0; });
    EXPECT_EQ(lists.last.tiles.size(), 2u * 64 * 12 / most);
    for (const Tile& tile : lists.last.tiles) {
      EXPECT_EQ(tile.count, most);
      EXPECT_EQ(tile.keys_end - tile.keys_begin, 4);
    }
    EXPECT_EQ(lists.last.keys[0].count, 128);
    // Those that are seen, by all queries of both heads, and those that are not.
    ASSERT_EQ(lists.windows.size(), 1u);
    ASSERT_TRUE(lists.windows[0].finishes());
    const TileLists::KeyTiles& keys = lists.windows[0].passes[0].keys;
    ASSERT_EQ(keys.tiles.size(), 8u);
    for (size_t i = 0; i < 8; ++i) {
      const bool seen = i < 4;
      EXPECT_EQ(keys.tiles[i].count, seen ? 128 : 64);
      EXPECT_EQ(keys.tiles[i].queries_end - keys.tiles[i].queries_begin, seen ? 2 : 0);
    }
    EXPECT_EQ(keys.queries[0].count, 64 * 12);
  }
}

}  // namespace
}  // namespace ringmaster::attention
