#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "attention/kernels/tile_list.h"

// Lists of tiles for a dilated branch, as tests and benchmarks of the kernels want them.
namespace ringmaster::attention::kernels {

// A dilated branch: segments of `length` tokens, of which head h sees every `rate`-th from h % rate
// on. Neighbours among the heads share a head of keys.
struct Branch {
  int64_t tokens;
  int64_t length;
  int64_t rate;
  int heads;
  int kv_heads;
  bool causal;
};

struct BranchLists {
  std::vector<Tile> tiles;
  std::vector<TileKeys> keys;
  std::vector<KeyTile> key_tiles;
  std::vector<TileKeys> queries;
};

// The tokens of one segment that a head sees.
struct HeadRows {
  TileRows rows;
  int32_t count = 0;
};

// Heavy tiles first. All queries have whole results.
inline void AddTiles(const HeadRows& head, int kv_head, bool causal, int rows_of_tile,
                     BranchLists* lists) {
  TileRows keys = head.rows;
  keys.head = kv_head;
  for (int32_t at = (head.count - 1) / rows_of_tile * rows_of_tile; at >= 0; at -= rows_of_tile) {
    TileRows part = head.rows;
    part.first += at;
    const auto list = static_cast<int32_t>(lists->keys.size());
    lists->keys.push_back({keys, head.count, causal ? at : kAllVisible});
    lists->tiles.push_back({part, std::min(rows_of_tile, head.count - at), list, list + 1});
  }
}

// Of keys that all `heads` see.
inline void AddKeyTiles(const std::vector<HeadRows>& heads, int kv_head, bool causal,
                        BranchLists* lists) {
  const int32_t count = heads.front().count;
  for (int32_t at = 0; at < count; at += kTileKeys) {
    TileRows part = heads.front().rows;
    part.head = kv_head;
    part.first += at;
    const auto list = static_cast<int32_t>(lists->queries.size());
    for (const HeadRows& head : heads) {
      lists->queries.push_back({head.rows, head.count, causal ? -at : kAllVisible});
    }
    lists->key_tiles.push_back(
        {part, std::min(kTileKeys, count - at), list, static_cast<int32_t>(lists->queries.size())});
  }
}

// Under one view of every operand, of step `rate`.
inline BranchLists ListsOf(const Branch& branch, int rows_of_tile) {
  BranchLists lists;
  const int sharing = branch.heads / branch.kv_heads;
  for (int64_t begin = 0; begin < branch.tokens; begin += branch.length) {
    const int64_t end = std::min(branch.tokens, begin + branch.length);
    for (int kv_head = 0; kv_head < branch.kv_heads; ++kv_head) {
      std::map<int64_t, std::vector<HeadRows>> by_first;
      for (int head = kv_head * sharing; head < (kv_head + 1) * sharing; ++head) {
        const int64_t first = begin + head % branch.rate;
        if (first >= end) {
          continue;
        }
        const HeadRows rows = {{0, head, static_cast<int32_t>(first % branch.rate),
                                static_cast<int32_t>(first / branch.rate)},
                               static_cast<int32_t>((end - first - 1) / branch.rate + 1)};
        AddTiles(rows, kv_head, branch.causal, rows_of_tile, &lists);
        by_first[first].push_back(rows);
      }
      for (const auto& [first, heads] : by_first) {
        AddKeyTiles(heads, kv_head, branch.causal, &lists);
      }
    }
  }
  return lists;
}

}  // namespace ringmaster::attention::kernels
