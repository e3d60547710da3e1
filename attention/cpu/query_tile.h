#pragma once

#include <cstdint>

// Attention of a tile of queries over all its keys, on raw pointers to fp32 or fp64, in vectors of
// one instruction set. Within a tile the lanes of a vector are queries, so that maxima and sums of
// softmax go down columns, and keys and values are read where they lie, an element at a time.
namespace ringmaster::attention {

// Queries of a tile, and keys of a block of it.
constexpr int64_t kTileQueries = 64;
constexpr int64_t kTileKeys = 64;
// Rows of keys and values must go on with zeros up to a multiple of this, and so do head
// dimensions.
constexpr int64_t kRowStep = 4;
constexpr int64_t kDimStep = 16;

template <typename Real>
struct QueryTile {
  // Row by row, each of `dim` elements; q is scaled and has kTileQueries rows, those behind the
  // last query zero.
  const Real* q;
  const Real* k;
  const Real* v;
  int64_t dim;
  int64_t queries;
  // The keys that the tile's last query sees, and its first one; each sees one more than that
  // before it, up to all. REQUIRES: first_sees >= 1.
  int64_t keys;
  int64_t first_sees;
  Real scale;  // positive
};

// The numbers that a tile of this dimension needs to work in.
constexpr int64_t ScratchSize(int64_t dim) {
  return 3 * dim * kTileQueries + 2 * kTileKeys * kTileQueries;
}

// The output [kTileQueries, dim] and the log denominators [kTileQueries]. What is behind the last
// query is of no meaning.
template <typename Real>
using ForwardTile = void(const QueryTile<Real>& tile, Real* scratch, Real* out, Real* lse);

// `dout` and `out`, what it is multiplied with, [kTileQueries, dim] and `lse` [kTileQueries]; those
// behind the last query are 0, 0 and infinity. A query whose lse is infinity has no gradient.
// Stores dq [kTileQueries, dim], adds to dk and dv, which are as long as k and v; dq and dk are not
// scaled yet.
template <typename Real>
struct TileGradients {
  const Real* dout;
  const Real* out;
  const Real* lse;
  Real* dq;
  Real* dk;
  Real* dv;
};
template <typename Real>
using BackwardTile = void(const QueryTile<Real>& tile, const TileGradients<Real>& gradients,
                          Real* scratch);

// Of one instruction set.
template <typename Real>
struct TilePasses {
  ForwardTile<Real>* forward;
  BackwardTile<Real>* backward;
};
struct TileCode {
  TilePasses<float> fp32;
  TilePasses<double> fp64;
};
extern const TileCode kAvx2Tiles;
extern const TileCode kAvx512Tiles;

}  // namespace ringmaster::attention
