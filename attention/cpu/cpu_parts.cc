#include "attention/cpu/cpu_parts.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "attention/parts/row_loops.h"
#include "attention/parts/rows.h"

namespace ringmaster::attention {
namespace {

// Queries that are worth gathering their keys for.
constexpr int64_t kMinCut = 4 * kTileQueries;

int64_t CeilOf(int64_t x, int64_t by) { return (x + by - 1) / by; }
int64_t RoundUp(int64_t x, int64_t step) { return CeilOf(x, step) * step; }

template <typename Real>
constexpr at::ScalarType kTypeOf = c10::CppTypeToScalarType<Real>::value;

template <typename Real>
const TilePasses<Real>& PassesOf(const TileCode& code) {
  if constexpr (std::is_same_v<Real, float>) {
    return code.fp32;
  } else {
    return code.fp64;
  }
}

// Memory of one thread for rows of `dim` numbers, aligned to the caches' lines.
template <typename Real>
class Workspace {
 public:
  explicit Workspace(int64_t dim) : dim_(dim) {}

  Real* Rows(int64_t rows) { return Numbers(rows * dim_); }
  Real* Numbers(int64_t count) {
    buffers_.push_back(at::empty({count}, kTypeOf<Real>));
    return buffers_.back().template data_ptr<Real>();
  }

 private:
  const int64_t dim_;
  std::vector<at::Tensor> buffers_;
};

// A part's problems and how its rows lie in a workspace.
struct Shape {
  Shape(const Part& part, double scale, const at::Tensor& q)
      : batch(q.size(0)),
        head_dim(q.size(3)),
        dim(RoundUp(head_dim, kDimStep)),
        queries(part.queries.rows_per_group),
        keys(part.keys.rows_per_group),
        padded_keys(RoundUp(keys, kRowStep)),
        problems(batch * part.queries.groups()),
        causal(part.causal),
        sign((scale > 0) - (scale < 0)),
        factor(scale == 0 ? 1 : std::abs(scale)) {}

  // Keys that a query sees.
  int64_t Sees(int64_t query) const { return causal ? keys - queries + query + 1 : keys; }

  template <typename Real>
  QueryTile<Real> Tile(const Real* q, const Real* k, const Real* v, int64_t first,
                       int64_t behind) const {
    return {.q = q,
            .k = k,
            .v = v,
            .dim = dim,
            .queries = behind - first,
            .keys = Sees(behind - 1),
            .first_sees = Sees(first),
            .scale = static_cast<Real>(factor)};
  }

  int64_t batch, head_dim, dim, queries, keys, padded_keys, problems;
  bool causal;
  // The scale: keys are hidden by scores of -inf, so that the factor must be positive, and the
  // queries take the sign, or 0.
  double sign, factor;
};

// Calls work(next) on all threads; next() gives numbers below `tasks`, each to one thread, and -1
// after the last: whoever is held up takes fewer.
template <typename F>
void ForEachTask(int64_t tasks, const F& work) {
  std::atomic<int64_t> given = 0;
  const auto next = [&] {
    const int64_t task = given.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1,
                   [&](int64_t begin, int64_t end) {
                     if (begin < end) {
                       work(next);
                     }
                   });
}

// Rows of a group: [begin, end), and zeros behind them up to `padded` rows.
struct Slice {
  int64_t begin, end, padded;
};

// Rows lie too far apart for the CPU to guess the next: this many before they are wanted.
constexpr int64_t kAhead = 8;

template <typename T>
void Expect(const T* row, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t d = 0; d < size; d += kLine) {
    __builtin_prefetch(row + d);
  }
}

// A slice in the type of the sums, times a factor, each row with zeros behind it up to the padded
// dimension.
template <typename T, typename Real>
void Gather(const Rows<T>& from, const RowSet& set, int64_t b, int64_t group, const Slice& slice,
            const Shape& shape, double times, Real* to) {
  const auto factor = static_cast<Real>(times);
  ForEachRow(set, group, slice.begin, slice.end, [&](const Run& run, int64_t i, int64_t row) {
    Expect(from.At(b, run, std::min(i + kAhead, run.count - 1)), shape.head_dim);
    const T* values = from.At(b, run, i);
    Real* at = to + (row - slice.begin) * shape.dim;
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      at[d] = static_cast<Real>(values[d]) * factor;
    }
    std::fill(at + shape.head_dim, at + shape.dim, Real{0});
  });
  std::fill(to + (slice.end - slice.begin) * shape.dim, to + slice.padded * shape.dim, Real{0});
}

template <typename Real>
void AddRow(const Real* values, int64_t size, double times, Real* to) {
  const auto factor = static_cast<Real>(times);
  for (int64_t d = 0; d < size; ++d) {
    to[d] += values[d] * factor;
  }
}

template <typename T, typename Real>
class ForwardPart {
 public:
  ForwardPart(const TileCode& code, const Part& part, double scale, const at::Tensor& q,
              const at::Tensor& k, const at::Tensor& v, const at::Tensor& merged_out,
              const at::Tensor& merged_lse)
      : passes_(PassesOf<Real>(code)),
        part_(part),
        shape_(part, scale, q),
        q_(q),
        k_(k),
        v_(v),
        out_(merged_out),
        lse_(merged_lse.unsqueeze(-1)) {
    // Few problems are cut, so that all threads have some.
    const int64_t wanted = CeilOf(2 * at::get_num_threads(), shape_.problems);
    step_ = RoundUp(CeilOf(shape_.queries, wanted), kMinCut);
    cuts_ = CeilOf(shape_.queries, step_);
  }

  void Compute() const {
    ForEachTask(shape_.problems * cuts_, [&](const auto& next) {
      Workspace<Real> memory(shape_.dim);
      const Space space{memory.Rows(shape_.padded_keys), memory.Rows(shape_.padded_keys),
                        memory.Rows(kTileQueries), memory.Rows(kTileQueries),
                        memory.Numbers(ScratchSize(shape_.dim))};
      for (int64_t task = next(); task >= 0; task = next()) {
        // Of a causal problem the last queries see the most: they come first.
        const int64_t problem = task / cuts_, cut = cuts_ - 1 - task % cuts_;
        Solve(problem % shape_.batch, problem / shape_.batch, cut * step_,
              std::min(cut * step_ + step_, shape_.queries), space);
      }
    });
  }

 private:
  struct Space {
    Real *k, *v, *q, *out, *scratch;
  };

  // Queries [begin, end) of a problem.
  void Solve(int64_t b, int64_t group, int64_t begin, int64_t end, const Space& space) const {
    const int64_t seen = shape_.Sees(end - 1), padded = RoundUp(seen, kRowStep);
    Gather(k_, part_.keys, b, group, {0, seen, padded}, shape_, 1, space.k);
    Gather(v_, part_.keys, b, group, {0, seen, padded}, shape_, 1, space.v);
    Real lse[kTileQueries];
    for (int64_t first = begin; first < end; first += kTileQueries) {
      const int64_t behind = std::min(first + kTileQueries, end);
      Gather(q_, part_.queries, b, group, {first, behind, kTileQueries}, shape_, shape_.sign,
             space.q);
      passes_.forward(shape_.Tile(space.q, space.k, space.v, first, behind), space.scratch,
                      space.out, lse);
      ForEachRow(part_.queries, group, first, behind, [&](const Run& run, int64_t i, int64_t row) {
        MergeRow(space.out + (row - first) * shape_.dim, lse[row - first], shape_.head_dim,
                 out_.At(b, run, i), lse_.At(b, run, i));
      });
    }
  }

  const TilePasses<Real>& passes_;
  const Part& part_;
  const Shape shape_;
  const Rows<T> q_, k_, v_;
  const Rows<Real> out_, lse_;
  int64_t step_, cuts_;  // queries of a cut, and cuts of a problem
};

template <typename T, typename Real>
class BackwardPart {
 public:
  BackwardPart(const TileCode& code, const Part& part, double scale, const CpuBackward& tensors)
      : passes_(PassesOf<Real>(code)),
        part_(part),
        shape_(part, scale, tensors.q),
        dout_(tensors.dout),
        q_(tensors.q),
        k_(tensors.k),
        v_(tensors.v),
        out_(tensors.out),
        lse_(tensors.lse.unsqueeze(-1)),
        dq_(tensors.dq),
        dk_(tensors.dk),
        dv_(tensors.dv) {
    if (!part.keys.distinct) {
      // Problems that share keys must not meet: their gradients are put side by side, and added in
      // order.
      const auto sizes = {shape_.batch, part.keys.groups(), shape_.keys, shape_.head_dim};
      apart_k_ = at::empty(sizes, kTypeOf<Real>);
      apart_v_ = at::empty(sizes, kTypeOf<Real>);
    }
  }

  void Compute(const CpuBackward& tensors) const {
    ForEachTask(shape_.problems, [&](const auto& next) {
      Workspace<Real> memory(shape_.dim);
      const auto keys = [&] { return memory.Rows(shape_.padded_keys); };
      const auto queries = [&] { return memory.Rows(kTileQueries); };
      const Space space{keys(),    keys(),    keys(),
                        keys(),    queries(), queries(),
                        queries(), queries(), memory.Numbers(ScratchSize(shape_.dim))};
      for (int64_t task = next(); task >= 0; task = next()) {
        Solve(task % shape_.batch, task / shape_.batch, space);
      }
    });
    if (apart_k_.defined()) {
      AddRows(apart_k_, {part_.keys, 1, at::kCPU}, tensors.dk);
      AddRows(apart_v_, {part_.keys, 1, at::kCPU}, tensors.dv);
    }
  }

 private:
  struct Space {
    Real *k, *v, *dk, *dv, *q, *dout, *out, *dq, *scratch;
  };

  void Solve(int64_t b, int64_t group, const Space& space) const {
    const Slice all{0, shape_.keys, shape_.padded_keys};
    Gather(k_, part_.keys, b, group, all, shape_, 1, space.k);
    Gather(v_, part_.keys, b, group, all, shape_, 1, space.v);
    std::fill_n(space.dk, shape_.padded_keys * shape_.dim, Real{0});
    std::fill_n(space.dv, shape_.padded_keys * shape_.dim, Real{0});
    for (int64_t first = 0; first < shape_.queries; first += kTileQueries) {
      SolveTile(b, group, first, std::min(first + kTileQueries, shape_.queries), space);
    }
    Give(space.dk, shape_.factor, b, group, apart_k_, dk_);
    Give(space.dv, 1, b, group, apart_v_, dv_);
  }

  void SolveTile(int64_t b, int64_t group, int64_t first, int64_t behind,
                 const Space& space) const {
    const Slice slice{first, behind, kTileQueries};
    Gather(q_, part_.queries, b, group, slice, shape_, shape_.sign, space.q);
    Gather(dout_, part_.queries, b, group, slice, shape_, 1, space.dout);
    Gather(out_, part_.queries, b, group, slice, shape_, 1, space.out);
    Real lse[kTileQueries];
    std::fill_n(lse, kTileQueries, std::numeric_limits<Real>::infinity());
    ForEachRow(part_.queries, group, first, behind, [&](const Run& run, int64_t i, int64_t row) {
      lse[row - first] = *lse_.At(b, run, i);
    });
    passes_.backward(shape_.Tile(space.q, space.k, space.v, first, behind),
                     {.dout = space.dout,
                      .out = space.out,
                      .lse = lse,
                      .dq = space.dq,
                      .dk = space.dk,
                      .dv = space.dv},
                     space.scratch);
    ForEachRow(part_.queries, group, first, behind, [&](const Run& run, int64_t i, int64_t row) {
      AddRow(space.dq + (row - first) * shape_.dim, shape_.head_dim, shape_.sign * shape_.factor,
             dq_.At(b, run, i));
    });
  }

  // What a problem's keys got.
  void Give(const Real* gradients, double factor, int64_t b, int64_t group, const at::Tensor& apart,
            const Rows<Real>& whole) const {
    if (apart.defined()) {
      Real* to = apart.template data_ptr<Real>() +
                 (b * part_.keys.groups() + group) * shape_.keys * shape_.head_dim;
      for (int64_t row = 0; row < shape_.keys; ++row) {
        for (int64_t d = 0; d < shape_.head_dim; ++d) {
          to[row * shape_.head_dim + d] =
              gradients[row * shape_.dim + d] * static_cast<Real>(factor);
        }
      }
      return;
    }
    ForEachRow(part_.keys, group, 0, shape_.keys, [&](const Run& run, int64_t i, int64_t row) {
      AddRow(gradients + row * shape_.dim, shape_.head_dim, factor, whole.At(b, run, i));
    });
  }

  const TilePasses<Real>& passes_;
  const Part& part_;
  const Shape shape_;
  const Rows<T> dout_, q_, k_, v_;
  const Rows<Real> out_, lse_, dq_, dk_, dv_;
  at::Tensor apart_k_, apart_v_;
};

// Calls f(T(), Real()) for the types of a tensor and of sums of it.
template <typename F>
void ForTypes(const at::Tensor& x, const at::Tensor& sums, const F& f) {
  const auto with_sums = [&](auto type) {
    return sums.scalar_type() == at::kDouble ? f(type, double()) : f(type, float());
  };
  switch (x.scalar_type()) {
    case at::kDouble:
      return f(double(), double());
    case at::kFloat:
      return with_sums(float());
    case at::kBFloat16:
      return with_sums(at::BFloat16());
    default:
      return with_sums(at::Half());
  }
}

}  // namespace

const TileCode* CpuTiles() {
#ifdef __x86_64__
  static const std::string capability = at::get_cpu_capability();
  return capability == "AVX512" ? &kAvx512Tiles : capability == "AVX2" ? &kAvx2Tiles : nullptr;
#else
  return nullptr;
#endif
}

void ForwardOnCpu(const TileCode& code, const Part& part, double scale, const at::Tensor& q,
                  const at::Tensor& k, const at::Tensor& v, const at::Tensor& merged_out,
                  const at::Tensor& merged_lse) {
  ForTypes(q, merged_out, [&]<typename T, typename Real>(T, Real) {
    ForwardPart<T, Real>(code, part, scale, q, k, v, merged_out, merged_lse).Compute();
  });
}

void BackwardOnCpu(const TileCode& code, const Part& part, double scale,
                   const CpuBackward& tensors) {
  ForTypes(tensors.q, tensors.dq, [&]<typename T, typename Real>(T, Real) {
    BackwardPart<T, Real>(code, part, scale, tensors).Compute(tensors);
  });
}

}  // namespace ringmaster::attention
