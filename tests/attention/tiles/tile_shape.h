#pragma once

#include <cstdint>

#include "attention/tiles/tile_lists.h"

namespace ringmaster::attention {

// With windows as short as segments allow, all branches joined that may be.
inline TileShape Shape(int64_t tokens, int heads, int kv_heads, int head_dim) {
  return {.tokens = tokens,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .deterministic = true,
          .joined = 15};
}

}  // namespace ringmaster::attention
