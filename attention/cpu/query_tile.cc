// Compiled once for each instruction set. Includes nothing with inline functions: the linker would
// give one set's copy to all of the program.
#include "attention/cpu/query_tile.h"

namespace ringmaster::attention {
namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kStrip = 4;  // vectors: kRowStep times as many sums stay in registers
#else
constexpr int kLanes = 8;
constexpr int kStrip = 2;
#endif
constexpr float kInfinity = __builtin_inff();

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int Bits __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

Vector Load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
void Store(Vector x, float* to) { *reinterpret_cast<Unaligned*>(to) = x; }
Vector Max(Vector x, Vector y) { return x > y ? x : y; }

// e^x for x that is not above 88, to about one unit in the last place; 0 below -87, and what is not
// a number stays so, whatever bits it has: the power of two is a factor, not added to p's exponent.
Vector Exp(Vector x) {
  const Bits tiny = x < -87.0f;
  const Vector bounded = tiny ? Vector{} - 87.0f : x;
  // 1.5 * 2^23, whose last place is one, and the exponent of one.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Vector shifted = bounded * 1.44269504088896341f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = bounded - n * 0.693359375f - n * -2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector power = reinterpret_cast<Vector>(reinterpret_cast<Bits>(shifted) << 23);
  return tiny ? Vector{} : p * power;
}

// A matrix whose elements are read one by one.
struct Elements {
  const float* data;
  int64_t row, column;  // steps
};

template <int kVectors, bool kAdd>
void MultiplyStrip(const Elements& a, int64_t rows, int64_t depth, const float* b, int64_t b_step,
                   float* c, int64_t c_step) {
  for (int64_t row = 0; row < rows; row += kRowStep) {
    Vector sums[kRowStep][kVectors] = {};
    const float* from = a.data + row * a.row;
    const float* to = b;
#pragma GCC unroll 4
    for (int64_t i = 0; i < depth; ++i) {
      for (int j = 0; j < kRowStep; ++j) {
        const float x = from[j * a.row];
        for (int l = 0; l < kVectors; ++l) {
          sums[j][l] += x * Load(to + l * kLanes);
        }
      }
      from += a.column;
      to += b_step;
    }
    for (int j = 0; j < kRowStep; ++j) {
      for (int l = 0; l < kVectors; ++l) {
        float* at = c + (row + j) * c_step + l * kLanes;
        Store(kAdd ? Load(at) + sums[j][l] : sums[j][l], at);
      }
    }
  }
}

// c [rows, lanes] = a [rows, depth] * b [depth, lanes], or adds that; rows a multiple of kRowStep,
// lanes of kLanes.
template <bool kAdd>
void Multiply(const Elements& a, int64_t rows, int64_t depth, const float* b, int64_t b_step,
              float* c, int64_t c_step, int64_t lanes) {
  int64_t lane = 0;
  for (; lane + kStrip * kLanes <= lanes; lane += kStrip * kLanes) {
    MultiplyStrip<kStrip, kAdd>(a, rows, depth, b + lane, b_step, c + lane, c_step);
  }
  for (; lane < lanes; lane += kLanes) {
    MultiplyStrip<1, kAdd>(a, rows, depth, b + lane, b_step, c + lane, c_step);
  }
}

// [dim, kTileQueries] of [kTileQueries, dim].
void Transpose(const float* from, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < kTileQueries; ++i) {
      to[d * kTileQueries + i] = from[i * dim + d];
    }
  }
}

void TransposeBack(const QueryTile& tile, const float* from, float* to) {
  for (int64_t i = 0; i < tile.queries; ++i) {
    for (int64_t d = 0; d < tile.dim; ++d) {
      to[i * tile.dim + d] = from[d * kTileQueries + i];
    }
  }
}

// -inf for the keys that a query does not see; the block's first key is number `begin`.
void Hide(const QueryTile& tile, int64_t begin, int64_t rows, float* scores) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t key = begin + row;
    const int64_t blind = key >= tile.keys ? kTileQueries : key - tile.first_sees + 1;
    for (int64_t i = 0; i < blind && i < kTileQueries; ++i) {
      scores[row * kTileQueries + i] = -kInfinity;
    }
  }
}

int64_t RoundUp(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Lanes that hold a query.
int64_t LanesOf(const QueryTile& tile) { return RoundUp(tile.queries, kLanes); }

// Calls f(first key, rows) for each block of keys; the rows behind the last key are hidden ones.
template <typename F>
void ForEachBlock(const QueryTile& tile, const F& f) {
  for (int64_t begin = 0; begin < tile.keys; begin += kTileKeys) {
    const int64_t left = tile.keys - begin;
    f(begin, RoundUp(left < kTileKeys ? left : kTileKeys, kRowStep));
  }
}

// The scores of a block before they are scaled [rows, kTileQueries]; `qt` are the queries, lane by
// lane.
void Scores(const QueryTile& tile, const float* qt, int64_t begin, int64_t rows, float* scores) {
  Multiply<false>({tile.k + begin * tile.dim, tile.dim, 1}, rows, tile.dim, qt, kTileQueries,
                  scores, kTileQueries, LanesOf(tile));
  if (begin + rows > tile.first_sees) {
    Hide(tile, begin, rows, scores);
  }
}

struct Sums {
  float* max;
  float* sum;
};

// Scores to their exponentials beside the largest one so far, which what came before is scaled to.
void Soften(const QueryTile& tile, int64_t rows, float* scores, const Sums& sums, float* out) {
  for (int64_t lane = 0; lane < LanesOf(tile); lane += kLanes) {
    const Vector before = Load(sums.max + lane);
    Vector max = before;
    for (int64_t row = 0; row < rows; ++row) {
      max = Max(Load(scores + row * kTileQueries + lane) * tile.scale, max);
    }
    const Vector factor = Exp(before - max);
    Vector sum = {};  // of a block alone, so that errors of many keys do not add up
    for (int64_t row = 0; row < rows; ++row) {
      float* at = scores + row * kTileQueries + lane;
      const Vector p = Exp(Load(at) * tile.scale - max);
      sum += p;
      Store(p, at);
    }
    Store(max, sums.max + lane);
    Store(Load(sums.sum + lane) * factor + sum, sums.sum + lane);
    for (int64_t d = 0; d < tile.dim; ++d) {
      float* at = out + d * kTileQueries + lane;
      Store(Load(at) * factor, at);
    }
  }
}

void Forward(const QueryTile& tile, float* scratch, float* out, float* lse) {
  const int64_t dim = tile.dim, lanes = LanesOf(tile);
  float* const qt = scratch;
  float* const sums_of = qt + dim * kTileQueries;
  float* const scores = sums_of + dim * kTileQueries;
  float max[kTileQueries], sum[kTileQueries];
  for (int64_t i = 0; i < kTileQueries; ++i) {
    max[i] = -kInfinity;
    sum[i] = 0;
  }
  Transpose(tile.q, dim, qt);
  __builtin_memset(sums_of, 0, dim * kTileQueries * sizeof(float));
  ForEachBlock(tile, [&](int64_t begin, int64_t rows) {
    Scores(tile, qt, begin, rows, scores);
    Soften(tile, rows, scores, {max, sum}, sums_of);
    Multiply<true>({tile.v + begin * dim, 1, dim}, dim, rows, scores, kTileQueries, sums_of,
                   kTileQueries, lanes);
  });
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      float* at = sums_of + d * kTileQueries + lane;
      Store(Load(at) / Load(sum + lane), at);
    }
  }
  TransposeBack(tile, sums_of, out);
  for (int64_t i = 0; i < tile.queries; ++i) {
    lse[i] = max[i] + __builtin_logf(sum[i]);
  }
}

// The products of dout and out, both lane by lane, summed as those of dout and v are: where one key
// has all the weight, so that out is its v, the two are equal.
void Products(int64_t dim, const float* doutt, const float* outt, float* delta) {
  for (int64_t lane = 0; lane < kTileQueries; lane += kLanes) {
    Vector sum = {};
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t at = d * kTileQueries + lane;
      sum += Load(doutt + at) * Load(outt + at);
    }
    Store(sum, delta + lane);
  }
}

// Scores to weights, and the gradients of weights to those of scores.
void Differentiate(const QueryTile& tile, const float* all_lse, const float* all_delta,
                   int64_t rows, float* scores, float* ds) {
  for (int64_t lane = 0; lane < LanesOf(tile); lane += kLanes) {
    const Vector lse = Load(all_lse + lane), delta = Load(all_delta + lane);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * kTileQueries + lane;
      const Vector p = Exp(Load(scores + at) * tile.scale - lse);
      Store(p, scores + at);
      Store(p * (Load(ds + at) - delta), ds + at);
    }
  }
}

void Backward(const QueryTile& tile, const TileGradients& g, float* scratch) {
  const int64_t dim = tile.dim, lanes = LanesOf(tile);
  float* const qt = scratch;
  float* const doutt = qt + dim * kTileQueries;
  float* const dqt = doutt + dim * kTileQueries;
  float* const scores = dqt + dim * kTileQueries;
  float* const ds = scores + kTileKeys * kTileQueries;
  Transpose(tile.q, dim, qt);
  Transpose(g.dout, dim, doutt);
  float delta[kTileQueries];
  Transpose(g.out, dim, dqt);
  Products(dim, doutt, dqt, delta);
  __builtin_memset(dqt, 0, dim * kTileQueries * sizeof(float));
  ForEachBlock(tile, [&](int64_t begin, int64_t rows) {
    Scores(tile, qt, begin, rows, scores);
    Multiply<false>({tile.v + begin * dim, dim, 1}, rows, dim, doutt, kTileQueries, ds,
                    kTileQueries, lanes);
    Differentiate(tile, g.lse, delta, rows, scores, ds);
    Multiply<true>({scores, kTileQueries, 1}, rows, tile.queries, g.dout, dim, g.dv + begin * dim,
                   dim, dim);
    Multiply<true>({ds, kTileQueries, 1}, rows, tile.queries, tile.q, dim, g.dk + begin * dim, dim,
                   dim);
    Multiply<true>({tile.k + begin * dim, 1, dim}, dim, rows, ds, kTileQueries, dqt, kTileQueries,
                   lanes);
  });
  TransposeBack(tile, dqt, g.dq);
}

}  // namespace

#ifdef __AVX512F__
const TileCode kAvx512Tiles = {Forward, Backward};
#else
const TileCode kAvx2Tiles = {Forward, Backward};
#endif

}  // namespace ringmaster::attention
