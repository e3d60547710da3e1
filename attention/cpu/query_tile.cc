// Compiled once for each instruction set. Includes nothing with inline functions: the linker would
// give one set's copy to all of the program.
#include "attention/cpu/query_tile.h"

namespace ringmaster::attention {
namespace {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
constexpr int kStrip = 4;  // vectors: kRowStep times as many sums stay in registers
#else
constexpr int kVectorBytes = 32;
constexpr int kStrip = 2;
#endif

// A vector of each type, and what its code is made of.
template <typename Real>
struct Vectors;

template <>
struct Vectors<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int Bits __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

  static constexpr float kInfinity = __builtin_inff();
  static constexpr int kFraction = 23;  // bits
  // 1.5 * 2^23, whose last place is one, and the exponent of one.
  static constexpr float kRound = 12582912.0f + 127.0f;
  static constexpr float kTiny = -87.0f;  // whose exponential is a normal number yet
  static constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;

  static float Log(float x) { return __builtin_logf(x); }
  // (e^r - 1 - r) / r^2 for r within half of log 2.
  static Vector Rest(Vector r) {
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    return p * r + 5.0000001201e-1f;
  }
};

template <>
struct Vectors<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef long long Bits __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

  static constexpr double kInfinity = __builtin_inf();
  static constexpr int kFraction = 52;
  static constexpr double kRound = 6755399441055744.0 + 1023.0;
  static constexpr double kTiny = -708.0;
  static constexpr double kLog2High = 6.93145751953125e-1, kLog2Low = 1.42860682030941723212e-6;

  static double Log(double x) { return __builtin_log(x); }
  // The series, as far as 2^-53 of it.
  static Vector Rest(Vector r) {
    Vector p = r * (1 / 87178291200.0) + 1 / 6227020800.0;
    p = p * r + 1 / 479001600.0;
    p = p * r + 1 / 39916800.0;
    p = p * r + 1 / 3628800.0;
    p = p * r + 1 / 362880.0;
    p = p * r + 1 / 40320.0;
    p = p * r + 1 / 5040.0;
    p = p * r + 1 / 720.0;
    p = p * r + 1 / 120.0;
    p = p * r + 1 / 24.0;
    p = p * r + 1 / 6.0;
    return p * r + 1 / 2.0;
  }
};

template <typename Real>
using VectorOf = typename Vectors<Real>::Vector;
template <typename Real>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));

template <typename Real>
VectorOf<Real> Load(const Real* from) {
  return *reinterpret_cast<const typename Vectors<Real>::Unaligned*>(from);
}
template <typename Real>
void Store(VectorOf<Real> x, Real* to) {
  *reinterpret_cast<typename Vectors<Real>::Unaligned*>(to) = x;
}

// e^x for x that is not above 88, to about one unit in the last place; 0 below -87, and -708 of
// fp64. What is not a number stays so, whatever bits it has: the power of two is a factor, not
// added to an exponent.
template <typename Real>
VectorOf<Real> Exp(VectorOf<Real> x) {
  using Of = Vectors<Real>;
  using Vector = VectorOf<Real>;
  using Bits = typename Of::Bits;
  const Bits tiny = x < Of::kTiny;
  const Vector bounded = tiny ? Vector{} + Of::kTiny : x;
  const Vector shifted = bounded * static_cast<Real>(1.44269504088896341) + Of::kRound;
  const Vector n = shifted - Of::kRound;
  const Vector r = bounded - n * Of::kLog2High - n * Of::kLog2Low;
  const Vector p = Of::Rest(r) * r * r + r + static_cast<Real>(1);
  const Vector power = reinterpret_cast<Vector>(reinterpret_cast<Bits>(shifted) << Of::kFraction);
  return tiny ? Vector{} : p * power;
}

// A matrix whose elements are read one by one.
template <typename Real>
struct Elements {
  const Real* data;
  int64_t row, column;  // steps
};

template <int kVectors, bool kAdd, typename Real>
void MultiplyStrip(const Elements<Real>& a, int64_t rows, int64_t depth, const Real* b,
                   int64_t b_step, Real* c, int64_t c_step) {
  for (int64_t row = 0; row < rows; row += kRowStep) {
    VectorOf<Real> sums[kRowStep][kVectors] = {};
    const Real* from = a.data + row * a.row;
    const Real* to = b;
#pragma GCC unroll 4
    for (int64_t i = 0; i < depth; ++i) {
      for (int j = 0; j < kRowStep; ++j) {
        const Real x = from[j * a.row];
        for (int l = 0; l < kVectors; ++l) {
          sums[j][l] += x * Load(to + l * kLanes<Real>);
        }
      }
      from += a.column;
      to += b_step;
    }
    for (int j = 0; j < kRowStep; ++j) {
      for (int l = 0; l < kVectors; ++l) {
        Real* at = c + (row + j) * c_step + l * kLanes<Real>;
        Store(kAdd ? Load(at) + sums[j][l] : sums[j][l], at);
      }
    }
  }
}

// c [rows, lanes] = a [rows, depth] * b [depth, lanes], or adds that; rows a multiple of kRowStep,
// lanes of a vector's lanes.
template <bool kAdd, typename Real>
void Multiply(const Elements<Real>& a, int64_t rows, int64_t depth, const Real* b, int64_t b_step,
              Real* c, int64_t c_step, int64_t lanes) {
  int64_t lane = 0;
  for (; lane + kStrip * kLanes<Real> <= lanes; lane += kStrip * kLanes<Real>) {
    MultiplyStrip<kStrip, kAdd, Real>(a, rows, depth, b + lane, b_step, c + lane, c_step);
  }
  for (; lane < lanes; lane += kLanes<Real>) {
    MultiplyStrip<1, kAdd, Real>(a, rows, depth, b + lane, b_step, c + lane, c_step);
  }
}

// [dim, kTileQueries] of [kTileQueries, dim].
template <typename Real>
void Transpose(const Real* from, int64_t dim, Real* to) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < kTileQueries; ++i) {
      to[d * kTileQueries + i] = from[i * dim + d];
    }
  }
}

template <typename Real>
void TransposeBack(const QueryTile<Real>& tile, const Real* from, Real* to) {
  for (int64_t i = 0; i < tile.queries; ++i) {
    for (int64_t d = 0; d < tile.dim; ++d) {
      to[i * tile.dim + d] = from[d * kTileQueries + i];
    }
  }
}

// -inf for the keys that a query does not see; the block's first key is number `begin`.
template <typename Real>
void Hide(const QueryTile<Real>& tile, int64_t begin, int64_t rows, Real* scores) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t key = begin + row;
    const int64_t blind = key >= tile.keys ? kTileQueries : key - tile.first_sees + 1;
    for (int64_t i = 0; i < blind && i < kTileQueries; ++i) {
      scores[row * kTileQueries + i] = -Vectors<Real>::kInfinity;
    }
  }
}

int64_t RoundUp(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Lanes that hold a query.
template <typename Real>
int64_t LanesOf(const QueryTile<Real>& tile) {
  return RoundUp(tile.queries, kLanes<Real>);
}

// Calls f(first key, rows) for each block of keys; the rows behind the last key are hidden ones.
template <typename Real, typename F>
void ForEachBlock(const QueryTile<Real>& tile, const F& f) {
  for (int64_t begin = 0; begin < tile.keys; begin += kTileKeys) {
    const int64_t left = tile.keys - begin;
    f(begin, RoundUp(left < kTileKeys ? left : kTileKeys, kRowStep));
  }
}

// The scores of a block before they are scaled [rows, kTileQueries]; `qt` are the queries, lane by
// lane.
template <typename Real>
void Scores(const QueryTile<Real>& tile, const Real* qt, int64_t begin, int64_t rows,
            Real* scores) {
  Multiply<false, Real>({tile.k + begin * tile.dim, tile.dim, 1}, rows, tile.dim, qt, kTileQueries,
                        scores, kTileQueries, LanesOf(tile));
  if (begin + rows > tile.first_sees) {
    Hide(tile, begin, rows, scores);
  }
}

template <typename Real>
struct Sums {
  Real* max;
  Real* sum;
};

// Scores to their exponentials beside the largest one so far, which what came before is scaled to.
template <typename Real>
void Soften(const QueryTile<Real>& tile, int64_t rows, Real* scores, const Sums<Real>& sums,
            Real* out) {
  for (int64_t lane = 0; lane < LanesOf(tile); lane += kLanes<Real>) {
    const VectorOf<Real> before = Load(sums.max + lane);
    VectorOf<Real> max = before;
    for (int64_t row = 0; row < rows; ++row) {
      const VectorOf<Real> score = Load(scores + row * kTileQueries + lane) * tile.scale;
      max = score > max ? score : max;
    }
    const VectorOf<Real> factor = Exp<Real>(before - max);
    VectorOf<Real> sum = {};  // of a block alone, so that errors of many keys do not add up
    for (int64_t row = 0; row < rows; ++row) {
      Real* at = scores + row * kTileQueries + lane;
      const VectorOf<Real> p = Exp<Real>(Load(at) * tile.scale - max);
      sum += p;
      Store(p, at);
    }
    Store(max, sums.max + lane);
    Store(Load(sums.sum + lane) * factor + sum, sums.sum + lane);
    for (int64_t d = 0; d < tile.dim; ++d) {
      Real* at = out + d * kTileQueries + lane;
      Store(Load(at) * factor, at);
    }
  }
}

template <typename Real>
void Forward(const QueryTile<Real>& tile, Real* scratch, Real* out, Real* lse) {
  const int64_t dim = tile.dim, lanes = LanesOf(tile);
  Real* const qt = scratch;
  Real* const sums_of = qt + dim * kTileQueries;
  Real* const scores = sums_of + dim * kTileQueries;
  Real max[kTileQueries], sum[kTileQueries];
  for (int64_t i = 0; i < kTileQueries; ++i) {
    max[i] = -Vectors<Real>::kInfinity;
    sum[i] = 0;
  }
  Transpose(tile.q, dim, qt);
  __builtin_memset(sums_of, 0, dim * kTileQueries * sizeof(Real));
  ForEachBlock(tile, [&](int64_t begin, int64_t rows) {
    Scores(tile, qt, begin, rows, scores);
    Soften(tile, rows, scores, {max, sum}, sums_of);
    Multiply<true, Real>({tile.v + begin * dim, 1, dim}, dim, rows, scores, kTileQueries, sums_of,
                         kTileQueries, lanes);
  });
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes<Real>) {
      Real* at = sums_of + d * kTileQueries + lane;
      Store(Load(at) / Load(sum + lane), at);
    }
  }
  TransposeBack(tile, sums_of, out);
  for (int64_t i = 0; i < tile.queries; ++i) {
    lse[i] = max[i] + Vectors<Real>::Log(sum[i]);
  }
}

// The products of dout and out, both lane by lane, summed as those of dout and v are: where one key
// has all the weight, so that out is its v, the two are equal.
template <typename Real>
void Products(int64_t dim, const Real* doutt, const Real* outt, Real* delta) {
  for (int64_t lane = 0; lane < kTileQueries; lane += kLanes<Real>) {
    VectorOf<Real> sum = {};
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t at = d * kTileQueries + lane;
      sum += Load(doutt + at) * Load(outt + at);
    }
    Store(sum, delta + lane);
  }
}

// Scores to weights, and the gradients of weights to those of scores.
template <typename Real>
void Differentiate(const QueryTile<Real>& tile, const Real* all_lse, const Real* all_delta,
                   int64_t rows, Real* scores, Real* ds) {
  for (int64_t lane = 0; lane < LanesOf(tile); lane += kLanes<Real>) {
    const VectorOf<Real> lse = Load(all_lse + lane), delta = Load(all_delta + lane);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * kTileQueries + lane;
      const VectorOf<Real> p = Exp<Real>(Load(scores + at) * tile.scale - lse);
      Store(p, scores + at);
      Store(p * (Load(ds + at) - delta), ds + at);
    }
  }
}

template <typename Real>
void Backward(const QueryTile<Real>& tile, const TileGradients<Real>& g, Real* scratch) {
  const int64_t dim = tile.dim, lanes = LanesOf(tile);
  Real* const qt = scratch;
  Real* const doutt = qt + dim * kTileQueries;
  Real* const dqt = doutt + dim * kTileQueries;
  Real* const scores = dqt + dim * kTileQueries;
  Real* const ds = scores + kTileKeys * kTileQueries;
  Transpose(tile.q, dim, qt);
  Transpose(g.dout, dim, doutt);
  Real delta[kTileQueries];
  Transpose(g.out, dim, dqt);
  Products(dim, doutt, dqt, delta);
  __builtin_memset(dqt, 0, dim * kTileQueries * sizeof(Real));
  ForEachBlock(tile, [&](int64_t begin, int64_t rows) {
    Scores(tile, qt, begin, rows, scores);
    Multiply<false, Real>({tile.v + begin * dim, dim, 1}, rows, dim, doutt, kTileQueries, ds,
                          kTileQueries, lanes);
    Differentiate(tile, g.lse, delta, rows, scores, ds);
    Multiply<true, Real>({scores, kTileQueries, 1}, rows, tile.queries, g.dout, dim,
                         g.dv + begin * dim, dim, dim);
    Multiply<true, Real>({ds, kTileQueries, 1}, rows, tile.queries, tile.q, dim, g.dk + begin * dim,
                         dim, dim);
    Multiply<true, Real>({tile.k + begin * dim, 1, dim}, dim, rows, ds, kTileQueries, dqt,
                         kTileQueries, lanes);
  });
  TransposeBack(tile, dqt, g.dq);
}

}  // namespace

#ifdef __AVX512F__
const TileCode kAvx512Tiles = {{Forward<float>, Backward<float>},
                               {Forward<double>, Backward<double>}};
#else
const TileCode kAvx2Tiles = {{Forward<float>, Backward<float>},
                             {Forward<double>, Backward<double>}};
#endif

}  // namespace ringmaster::attention
