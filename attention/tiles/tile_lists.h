#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention/kernels/tile_list.h"
#include "attention/parts/rank_parts.h"

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
  // One call of the backward pass. No row of queries lies in two tiles, and none of keys.
  struct Backward {
    QueryTiles queries;  // only if deterministic
    KeyTiles keys;
    kernels::KeyGradients key_gradients = kernels::KeyGradients::kAdd;
  };
  // Consecutive local tokens that meet no others, and the calls for them, one for each branch that
  // has work: sums in fp32 are of one window at a time. A window whose last call finishes needs no
  // more for dk and dv, and what comes from peers is added before that call; else it is added last,
  // and the sums are to be rounded.
  struct Window {
    int64_t begin = 0;
    int64_t tokens = 0;
    // Whether the sums of keys must be zero before, because no first call stores them all.
    bool zero_keys = false;
    std::vector<Backward> passes;

    bool finishes() const {
      return !passes.empty() && passes.back().key_gradients == kernels::KeyGradients::kFinish;
    }
  };

  // Under view i lie this rank's rows, every steps[i]-th token. The pool, whose rows are tokens of
  // one head, lies under one view more.
  std::vector<int64_t> steps;
  int pool_view() const { return static_cast<int>(steps.size()); }

  // Forward, of all branches. The last ones cover every place, and merge its parts, those of far
  // ones too, when these are there; where there are none, the parts are merged by themselves.
  QueryTiles local;
  QueryTiles far;
  QueryTiles last;
  // Where the result of each numbered query goes: kernels::kWhole when no other query is of its
  // token's head, else the number of a part. The parts of local token t and head h are numbered
  // from merge_begin[t * heads + h] up to the next one's, in the order in which they are merged.
  // Without parts there is no merge_begin.
  std::vector<uint32_t> slots;
  std::vector<uint32_t> merge_begin;
  int64_t parts() const { return merge_begin.empty() ? 0 : merge_begin.back(); }

  // Gradients of keys of the pool, one call for each branch that has work.
  std::vector<Backward> backward_far;
  // All tokens; one alone if the rank exchanges rows with others.
  std::vector<Window> windows;
  // By key's place, token * kv_heads + head: whether its sums have been added to before the
  // finishing calls. Empty if none have.
  std::vector<uint8_t> summed;

  size_t bytes() const;
};

// What lists are made for.
struct TileShape {
  int64_t tokens = 0;  // of the rank
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // 64 or 128: says how long tiles are
  // Whether the backward pass is to give the same bits every time.
  bool deterministic = false;
  // A window ends where it can from this many tokens on.
  int64_t window_tokens = 0;
  // What is computed while a byte comes from a peer, about: tiles that merge or finish wait for the
  // peers only if the work before them takes as long.
  double flops_per_byte = 0;
  // How many branches are joined to the one that covers every place (joint_runs.h); unset: as many
  // as make the forward pass shortest.
  std::optional<int> joined;

  friend bool operator==(const TileShape&, const TileShape&) = default;
};

// Heavy tiles come first within each run of queries, or within each head (RankParts::tile_order).
// Time and memory grow with tokens * heads. REQUIRES: fewer than 2^30 tokens and pool rows, fewer
// than 2^32 rows of queries in all parts.
TileLists MakeTileLists(const RankParts& parts, const TileShape& shape);

}  // namespace ringmaster::attention
