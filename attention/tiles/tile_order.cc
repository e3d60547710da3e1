#include "attention/tiles/tile_order.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

namespace ringmaster::attention {
namespace {

using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;

constexpr int64_t kUnit = 64;  // rows that are one place of the curve

// Tiles that are sorted by weight alone, three for each multiprocessor of an H100 or H200. Of two
// and four, two left 8K tokens 4 % slower, four their backward pass 6 % (benchmarks/README.md).
constexpr int64_t kLastTiles = int64_t{3} * 132;

// How far along a Hilbert curve over a square of `side`, a power of two, a place lies.
int64_t Along(int64_t side, int64_t x, int64_t y) {
  int64_t along = 0;
  for (int64_t half = side / 2; half > 0; half /= 2) {
    const bool right = (x & half) != 0, upper = (y & half) != 0;
    along += half * half * (right ? (upper ? 2 : 3) : (upper ? 1 : 0));
    // Each quarter is the curve again, the outer two turned.
    if (!upper) {
      if (right) {
        x = side - 1 - x;
        y = side - 1 - y;
      }
      std::swap(x, y);
    }
  }
  return along;
}

struct Seen {
  int64_t pairs = 0;   // of a row of the tile and one it sees, about
  int64_t middle = 0;  // of the rows that it sees
};

Seen SeenBy(const Tile& tile, const std::vector<TileKeys>& lists) {
  Seen seen;
  int64_t rows = 0;
  for (int32_t i = tile.keys_begin; i < tile.keys_end; ++i) {
    const int64_t count = std::clamp<int64_t>(
        int64_t{tile.count - 1} * lists[i].step + lists[i].diagonal + 1, 0, lists[i].count);
    rows += count;
    seen.middle += count * (lists[i].rows.first + count / 2);
  }
  seen.pairs = rows * tile.count;
  seen.middle /= std::max<int64_t>(1, rows);
  return seen;
}

Seen SeenBy(const KeyTile& tile, const std::vector<TileKeys>& lists) {
  Seen seen;
  int64_t rows = 0;
  for (int32_t i = tile.queries_begin; i < tile.queries_end; ++i) {
    const int64_t hidden = std::clamp<int64_t>(-int64_t{lists[i].diagonal}, 0, lists[i].count);
    const int64_t count = lists[i].count - hidden;
    rows += count;
    seen.middle += count * (lists[i].rows.first + hidden + count / 2);
  }
  seen.pairs = rows * tile.count;
  seen.middle /= std::max<int64_t>(1, rows);
  return seen;
}

// Sorts by f(tile), which is called once for each; what is equal stays in its order.
template <typename Iterator, typename F>
void SortBy(Iterator begin, Iterator end, const F& f) {
  std::vector<std::pair<decltype(f(*begin)), std::decay_t<decltype(*begin)>>> keyed;
  keyed.reserve(end - begin);
  std::transform(begin, end, std::back_inserter(keyed),
                 [&](const auto& tile) { return std::pair(f(tile), tile); });
  std::stable_sort(keyed.begin(), keyed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::transform(keyed.begin(), keyed.end(), begin, [](const auto& pair) { return pair.second; });
}

template <typename AnyTile>
void Sort(TileOrder order, const std::vector<TileKeys>& lists, std::vector<AnyTile>* tiles) {
  int64_t side = 1;
  for (const AnyTile& tile : *tiles) {
    const int64_t reach = std::max<int64_t>(tile.rows.first, SeenBy(tile, lists).middle) / kUnit;
    while (side <= reach) side *= 2;
  }
  SortBy(tiles->begin(), tiles->end(), [&](const AnyTile& tile) {
    const Seen seen = SeenBy(tile, lists);
    const int64_t place = order == TileOrder::kHilbert
                              ? Along(side, tile.rows.first / kUnit, seen.middle / kUnit)
                              : -seen.pairs;
    return std::pair(tile.rows.head, place);
  });
}

template <typename AnyTile>
void SortLast(const std::vector<TileKeys>& lists, std::vector<AnyTile>* tiles) {
  const auto last = tiles->end() - std::min<int64_t>(tiles->size(), kLastTiles);
  SortBy(last, tiles->end(), [&](const AnyTile& tile) { return -SeenBy(tile, lists).pairs; });
}

}  // namespace

void SortTiles(TileOrder order, const std::vector<TileKeys>& keys, std::vector<Tile>* tiles) {
  Sort(order, keys, tiles);
}
void SortTiles(TileOrder order, const std::vector<TileKeys>& queries, std::vector<KeyTile>* tiles) {
  Sort(order, queries, tiles);
}

void SortLastTiles(const std::vector<TileKeys>& keys, std::vector<Tile>* tiles) {
  SortLast(keys, tiles);
}
void SortLastTiles(const std::vector<TileKeys>& queries, std::vector<KeyTile>* tiles) {
  SortLast(queries, tiles);
}

}  // namespace ringmaster::attention
