#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/parts/rank_parts.h"
#include "attention/tiles/message_lists.h"
#include "attention/tiles/tile_lists.h"

namespace ringmaster::attention {

// TileLists and MessageLists on a device: lists of structures are tensors of their bytes, key_sums
// of its own, all other lists int32 tensors with the bits of uint32. Immutable; thread-safe.
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
    kernels::KeyGradients key_gradients;
  };
  struct Window {
    int64_t begin;
    int64_t tokens;
    bool zero_keys;
    bool finishes;
    std::vector<Backward> passes;
  };

  struct Messages {
    Messages(const MessageLists& lists, at::Device device);
    size_t bytes() const;

    at::Tensor sent;
    at::Tensor kept;
    at::Tensor places;
    at::Tensor begin;
    at::Tensor rows;
  };

  // REQUIRES: as MakeTileLists.
  PlacedTiles(const RankParts& rank, const TileShape& shape, at::Device device);

  size_t bytes() const;

  std::vector<int64_t> steps;
  Queries local;
  Queries far;
  Queries last;
  at::Tensor slots;
  at::Tensor last_slots;
  at::Tensor merge_begin;
  at::Tensor mix_places;
  at::Tensor mix_begin;
  int64_t parts = 0;
  bool deterministic = false;
  std::vector<Backward> backward_far;
  std::vector<Window> windows;
  at::Tensor key_sums;
  // Bools, [tokens, heads, 1], which places are in no tile of queries, and [tokens, heads of keys,
  // 1], of which nobody here and no peer sees the keys; undefined where there are none. What lies
  // there may be anything, and is read beside tiles.
  at::Tensor no_query;
  at::Tensor no_key;
  Messages messages;

 private:
  void PlaceUncovered(const RankParts& rank, const TileShape& shape, at::Device device);
};

}  // namespace ringmaster::attention
