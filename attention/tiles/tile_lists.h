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
  // One call of the backward pass. No row of queries lies in two tiles, and none of keys, unless
  // it is added to and the order of sums is free.
  struct Backward {
    QueryTiles queries;  // only if deterministic
    KeyTiles keys;
    kernels::KeyGradients key_gradients = kernels::KeyGradients::kAdd;
  };
  // Consecutive local tokens that meet no others, and the calls for them, one for each branch that
  // has work, but one for all that add where the order of sums is free: sums in fp32 are of one
  // window at a time. What comes from peers is added when all
  // calls have been made. Where the last one finishes, only the sums it was added to are to be
  // rounded then, else all.
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

  // Forward, of all branches, to be called in this order, the far ones when the peers' rows are
  // there. The last ones cover every place.
  QueryTiles local;
  QueryTiles last;
  QueryTiles far;
  // Where the result of each numbered query goes, of local and far tiles and of the last ones,
  // which have numbers of their own: kernels::kWhole when it is all of its place, a token's head,
  // or all else is merged into it, else the number of a part. No last_slots: all are whole.
  std::vector<uint32_t> slots;
  std::vector<uint32_t> last_slots;
  // The last tiles merge parts merge_begin[t * heads + h] up to the next one's into the place of
  // local token t and head h. Empty if they merge nothing.
  std::vector<uint32_t> merge_begin;
  // Places with far parts, and all with parts where there are no last tiles, are merged when all
  // are there: place mix_places[i] of parts from mix_begin[i] on, the last tile's own first.
  std::vector<uint32_t> mix_places;
  std::vector<uint32_t> mix_begin;
  // Parts of a place are numbered in the order in which they are merged.
  int64_t parts() const {
    const std::vector<uint32_t>& begin = mix_begin.empty() ? merge_begin : mix_begin;
    return begin.empty() ? 0 : begin.back();
  }

  // Gradients of keys of the pool, in calls as a window's.
  std::vector<Backward> backward_far;
  // All tokens; one alone if the rank exchanges rows with others.
  std::vector<Window> windows;
  // By key's place, token * kv_heads + head: kernels::kSumsBefore, kSumsAfter. Empty if all are 0.
  std::vector<uint8_t> key_sums;

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
  // How many branches are joined to the one that covers every place (joint_runs.h); unset: as many
  // as make the forward pass shortest.
  std::optional<int> joined;

  friend bool operator==(const TileShape&, const TileShape&) = default;
};

// Heavy tiles come first within each run of queries, or within each head (RankParts::tile_order),
// and the last ones of a call come down in weight (SortLastTiles).
// Time and memory grow with tokens * heads. REQUIRES: fewer than 2^30 tokens and pool rows, fewer
// than 2^32 rows of queries in all parts.
TileLists MakeTileLists(const RankParts& parts, const TileShape& shape);

}  // namespace ringmaster::attention
