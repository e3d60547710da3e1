#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/rank_parts.h"
#include "attention/tile_lists.h"

namespace ringmaster::attention {

// TileLists on a device: each list is a tensor of the bytes of its structures, slots and
// merge_begin are int32 tensors with the bits of uint32. Immutable; thread-safe.
struct PlacedTiles {
  struct Queries {
    at::Tensor tiles;
    at::Tensor keys;
  };
  struct Keys {
    at::Tensor tiles;
    at::Tensor queries;
  };
  struct Backward {
    Queries queries;
    Keys keys;
    bool all_keys = false;
  };

  // REQUIRES: as MakeTileLists.
  PlacedTiles(const RankParts& rank, int64_t tokens, int heads, int kv_heads, int head_dim,
              at::Device device);

  size_t bytes() const;

  std::vector<int64_t> steps;
  Queries local;
  Queries far;
  at::Tensor slots;
  at::Tensor merge_begin;
  int64_t parts = 0;
  std::vector<Backward> backward_far;
  // Those of all keys first.
  std::vector<Backward> backward_local;
};

}  // namespace ringmaster::attention
