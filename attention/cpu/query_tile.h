#pragma once

#include <cstdint>

// Attention of a tile of queries over all its keys, on raw fp32 pointers, in vectors of one
// instruction set. Within a tile the lanes of a vector are queries, so that maxima and sums of
// softmax go down columns, and keys and values are read where they lie, an element at a time.
namespace ringmaster::attention {

// Queries of a tile, and keys of a block of it.
constexpr int64_t kTileQueries = 64;
constexpr int64_t kTileKeys = 64;
// Rows of keys and values must go on with zeros up to a multiple of this, and so do head
// dimensions.
constexpr int64_t kRowStep = 4;
constexpr int64_t kDimStep = 16;

struct QueryTile {
  // Row by row, each of `dim` elements; q is scaled and has kTileQueries rows, those behind the
  // last query zero.
  const float* q;
  const float* k;
  const float* v;
  int64_t dim;
  int64_t queries;
  // The keys that the tile's last query sees, and its first one; each sees one more than that
  // before it, up to all. REQUIRES: first_sees >= 1.
  int64_t keys;
  int64_t first_sees;
  float scale;  // positive
};

// The floats that a tile of this dimension needs to work in.
constexpr int64_t ScratchSize(int64_t dim) {
  return 3 * dim * kTileQueries + 2 * kTileKeys * kTileQueries;
}

// The output [kTileQueries, dim] and the log denominators [kTileQueries]. What is behind the last
// query is of no meaning.
using ForwardTile = void(const QueryTile& tile, float* scratch, float* out, float* lse);

// `dout` and `out`, what it is multiplied with, [kTileQueries, dim] and `lse` [kTileQueries]; those
// behind the last query are 0, 0 and infinity. A query whose lse is infinity has no gradient.
// Stores dq [kTileQueries, dim], adds to dk and dv, which are as long as k and v; dq and dk are not
// scaled yet.
struct TileGradients {
  const float* dout;
  const float* out;
  const float* lse;
  float* dq;
  float* dk;
  float* dv;
};
using BackwardTile = void(const QueryTile& tile, const TileGradients& gradients, float* scratch);

struct TileCode {
  ForwardTile* forward;
  BackwardTile* backward;
};
extern const TileCode kAvx2Tiles;
extern const TileCode kAvx512Tiles;

}  // namespace ringmaster::attention
