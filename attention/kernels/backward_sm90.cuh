#pragma once

#include <string>

#include "attention/kernels/tile_launch.cuh"

// What the two kernels of the backward pass have in common.
namespace ringmaster::attention::kernels {

std::string BackwardQueries(const BackwardProblem& problem, cudaStream_t stream);
// With dQ or without.
std::string BackwardKeys(const BackwardProblem& problem, bool with_queries, cudaStream_t stream);

struct BackwardArguments {
  ViewMaps queries;
  ViewMaps douts;
  ViewMaps keys;
  ViewMaps values;
  int64_t query_steps[kMaxViews];
  float scale;
};

// Empty, or what the driver said. The boxes of queries have `query_rows` rows, those of keys
// `key_rows`.
inline std::string Prepare(const BackwardProblem& problem, int query_rows, int key_rows,
                           BackwardArguments* arguments) {
  for (size_t i = 0; i < problem.query_views.size(); ++i) {
    arguments->query_steps[i] = problem.query_views[i].step;
  }
  arguments->scale = problem.scale;
  std::string error =
      MakeViewMaps(problem.query_views, problem.head_dim, query_rows, &arguments->queries);
  if (error.empty()) {
    error = MakeViewMaps(problem.dout_views, problem.head_dim, query_rows, &arguments->douts);
  }
  if (error.empty()) {
    error = MakeViewMaps(problem.key_views, problem.head_dim, key_rows, &arguments->keys);
  }
  if (error.empty()) {
    error = MakeViewMaps(problem.value_views, problem.head_dim, key_rows, &arguments->values);
  }
  return error;
}

__device__ inline int64_t TokenOf(const TileRows& rows, const int64_t* steps, int row) {
  return rows.residue + static_cast<int64_t>(rows.first + row) * steps[rows.view];
}

// Where sums have a token of a head.
__device__ inline float* SumsAt(const Gradient& sums, int batch, int64_t token, int head) {
  return sums.data + batch * sums.batch_stride + (token - sums.first_token) * sums.token_stride +
         head * sums.head_stride;
}

// Calls f(i, first column, four numbers) for the columns of half `h` of an accumulator that this
// lane is left with, i = 0, 1, ... Four lanes hold two columns of every eight each; after an
// exchange between neighbours each lane has four that are neighbours.
template <int kWidth, typename F>
__device__ __forceinline__ void ForEachFour(const float (&values)[kWidth / 2], int h, int lane,
                                            const F& f) {
#pragma unroll
  for (int column = 0; column < kWidth; column += 16) {
    const int i = 4 * (column / 8) + 2 * h;
    const bool upper = lane & 1;
    float2 low = make_float2(values[i], values[i + 1]);
    float2 high = make_float2(values[i + 4], values[i + 5]);
    float2 give = upper ? low : high;
    give.x = __shfl_xor_sync(0xFFFFFFFF, give.x, 1);
    give.y = __shfl_xor_sync(0xFFFFFFFF, give.y, 1);
    (upper ? low : high) = give;
    f(column / 16, column + 8 * (lane & 1) + 4 * (lane / 2 & 1),
      make_float4(low.x, low.y, high.x, high.y));
  }
}

// Adds half `h` of an accumulator, times `factor`, to a row, or stores it there.
template <int kWidth>
__device__ __forceinline__ void AddRow(float* out, const float (&values)[kWidth / 2], int h,
                                       int lane, float factor, bool real, bool store = false) {
  ForEachFour<kWidth>(values, h, lane, [&](int, int column, float4 four) {
    four = {four.x * factor, four.y * factor, four.z * factor, four.w * factor};
    if (real && store) {
      *reinterpret_cast<float4*>(out + column) = four;
    } else if (real) {
      sm90::AddFour(out + column, four);
    }
  });
}

// Adds a group's accumulator, times `factor`, to the gradients of a tile's rows, or stores it
// there.
template <int kHeadDim, typename AnyTile, typename Group>
__device__ __forceinline__ void AddRows(const Gradient* gradients, const int64_t* steps,
                                        const AnyTile& tile, int batch, const Group& group,
                                        const float (&values)[kHeadDim / 2], float factor,
                                        bool store = false) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = group.row + 8 * h;
    const int64_t token = TokenOf(tile.rows, steps, row);
    float* out = SumsAt(gradients[tile.rows.view], batch, token, tile.rows.head);
    AddRow<kHeadDim>(out, values, h, group.lane, factor, row < tile.count, store);
  }
}

}  // namespace ringmaster::attention::kernels
