#include "attention/tiles/tile_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace ringmaster::attention {
namespace {

using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;

constexpr int kSide = 16;

// A tile for each place of a square and head: its rows and those it sees are 64 long.
template <typename AnyTile>
std::vector<AnyTile> Square(std::vector<TileKeys>* lists) {
  std::vector<AnyTile> tiles;
  for (int head = 0; head < 2; ++head) {
    for (int x = 0; x < kSide; ++x) {
      for (int y = 0; y < kSide; ++y) {
        const auto at = static_cast<int32_t>(lists->size());
        lists->push_back({{0, head, 0, y * 64}, 64, kernels::kAllVisible});
        tiles.push_back({{0, head, 0, x * 64}, 64, at, at + 1});
      }
    }
  }
  std::shuffle(tiles.begin(), tiles.end(), std::mt19937(1));
  return tiles;
}

int32_t SeenBegin(const Tile& tile) { return tile.keys_begin; }
int32_t SeenBegin(const KeyTile& tile) { return tile.queries_begin; }

template <typename AnyTile>
void CheckCurve() {
  std::vector<TileKeys> lists;
  std::vector<AnyTile> tiles = Square<AnyTile>(&lists);
  SortTiles(TileOrder::kHilbert, lists, &tiles);
  std::set<int32_t> all;
  for (size_t i = 0; i < tiles.size(); ++i) {
    all.insert(SeenBegin(tiles[i]));
    EXPECT_EQ(tiles[i].rows.head, static_cast<int32_t>(i) / (kSide * kSide));
    if (i % (kSide * kSide) == 0) continue;
    // A step to a neighbour each time.
    EXPECT_EQ(std::abs(tiles[i].rows.first - tiles[i - 1].rows.first) +
                  std::abs(lists[SeenBegin(tiles[i])].rows.first -
                           lists[SeenBegin(tiles[i - 1])].rows.first),
              64);
  }
  EXPECT_EQ(all.size(), lists.size());
}

TEST(TileOrderTest, AHilbertCurveGoesFromNeighbourToNeighbour) {
  CheckCurve<Tile>();
  CheckCurve<KeyTile>();
}

TEST(TileOrderTest, HeavyTilesComeFirstWithinAHead) {
  // Visible: 100, 40, 40 of 200 with a diagonal, and twice 30.
  const std::vector<TileKeys> keys = {{{}, 100, kernels::kAllVisible},
                                      {{}, 40, kernels::kAllVisible},
                                      {{}, 200, -24},
                                      {{}, 30, kernels::kAllVisible},
                                      {{}, 30, kernels::kAllVisible}};
  std::vector<Tile> tiles = {{{0, 1, 0, 0}, 64, 0, 1},
                             {{0, 0, 0, 0}, 64, 1, 2},
                             {{0, 0, 0, 1}, 64, 2, 3},
                             {{0, 0, 0, 2}, 64, 3, 5},
                             {{0, 0, 0, 3}, 64, 0, 0}};
  SortTiles(TileOrder::kHeavyFirst, keys, &tiles);
  std::vector<std::pair<int, int>> got;
  for (const Tile& tile : tiles) got.emplace_back(tile.rows.head, tile.rows.first);
  EXPECT_EQ(got, (std::vector<std::pair<int, int>>{{0, 2}, {0, 0}, {0, 1}, {0, 3}, {1, 0}}));

  // Queries before the first that sees a key do not count.
  const std::vector<TileKeys> queries = {{{}, 100, -70}, {{}, 31, kernels::kAllVisible}};
  std::vector<KeyTile> key_tiles = {{{0, 0, 0, 0}, 64, 0, 1}, {{0, 0, 0, 1}, 64, 1, 2}};
  SortTiles(TileOrder::kHeavyFirst, queries, &key_tiles);
  EXPECT_EQ(key_tiles[0].rows.first, 1);
}

// Of many, three sizes in turn: the first stay as they are, the last come down in weight.
TEST(TileOrderTest, TheLastTilesAreSortedByWeight) {
  constexpr int kAll = 1000;
  // 40, 100 and, by its last query, 3 * 63 + 1 keys.
  const std::vector<TileKeys> keys = {
      {{}, 40, kernels::kAllVisible}, {{}, 100, kernels::kAllVisible}, {{}, 500, 0, /*step=*/3}};
  std::vector<Tile> tiles;
  for (int i = 0; i < kAll; ++i) tiles.push_back({{0, 0, 0, i}, 64, i % 3, i % 3 + 1});
  const std::vector<Tile> before = tiles;
  SortLastTiles(keys, &tiles);
  int kept = 0;
  while (kept < kAll && tiles[kept].rows.first == before[kept].rows.first) ++kept;
  EXPECT_GT(kept, kAll / 2);
  EXPECT_LT(kept, kAll - 132);
  std::set<int32_t> all;
  for (int i = 0; i < kAll; ++i) all.insert(tiles[i].rows.first);
  EXPECT_EQ(all.size(), tiles.size());
  for (int i = kept + 1; i < kAll; ++i) {
    EXPECT_LE(tiles[i].keys_begin, tiles[i - 1].keys_begin);
    // What weighs the same stays in its order.
    EXPECT_TRUE(tiles[i].keys_begin < tiles[i - 1].keys_begin ||
                tiles[i].rows.first > tiles[i - 1].rows.first);
  }
}

}  // namespace
}  // namespace ringmaster::attention
