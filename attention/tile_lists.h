#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/kernels/tile_list.h"
#include "attention/rank_parts.h"

namespace ringmaster::attention {

// RankParts as work of the kernels over tiles, one softmax over all branches. Immutable once made.
struct TileLists {
  // Queries, and the keys that each tile of them sees.
  struct QueryTiles {
    std::vector<kernels::Tile> tiles;
    std::vector<kernels::TileKeys> keys;
  };
  // Keys, and the queries that see each tile of them.
  struct KeyTiles {
    std::vector<kernels::KeyTile> tiles;
    std::vector<kernels::TileKeys> queries;
  };
  // No row of queries lies in two tiles, and none of keys.
  struct Backward {
    QueryTiles queries;
    KeyTiles keys;
    // Whether every local row of keys is in a tile.
    bool all_keys = false;
  };

  // Under view i lie this rank's rows, every steps[i]-th token. The pool, whose rows are tokens of
  // one head, lies under one view more.
  std::vector<int64_t> steps;
  int pool_view() const { return static_cast<int>(steps.size()); }

  // Forward, of all branches.
  QueryTiles local;
  QueryTiles far;
  // Where the result of each numbered query goes: kernels::kWhole when no other query is of its
  // token's head, else the number of a part. The parts of local token t and head h are numbered
  // from merge_begin[t * heads + h] up to the next one's, in the order in which they are merged.
  std::vector<uint32_t> slots;
  std::vector<uint32_t> merge_begin;
  int64_t parts() const { return merge_begin.back(); }

  // One call for each: by branch, those without work left out. Far gradients of keys are the
  // pool's.
  std::vector<Backward> backward_far;
  std::vector<Backward> backward_local;

  size_t bytes() const;
};

// The lists of a rank that holds `tokens` tokens, heavy tiles first within each run of queries.
// Time and memory grow with tokens * heads. REQUIRES: fewer than 2^30 tokens and pool rows, fewer
// than 2^32 rows of queries in all parts; head_dim 64 or 128 says how long tiles are.
TileLists MakeTileLists(const RankParts& parts, int64_t tokens, int heads, int kv_heads,
                        int head_dim);

}  // namespace ringmaster::attention
