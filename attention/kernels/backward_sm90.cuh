#pragma once

#include <math.h>

#include <string>

#include "attention/kernels/tile_kernel.cuh"

// What the two kernels of the backward pass have in common.
namespace ringmaster::attention::kernels {

std::string BackwardQueries(const BackwardProblem& problem, cudaStream_t stream);
std::string BackwardKeys(const BackwardProblem& problem, cudaStream_t stream);

template <typename Arguments>
std::string MakeBackwardMaps(const BackwardProblem& problem, int query_rows, int key_rows,
                             Arguments* arguments) {
  std::string error =
      MakeMaps(problem.query_views, problem.head_dim, query_rows, arguments->queries);
  if (error.empty()) {
    error = MakeMaps(problem.dout_views, problem.head_dim, query_rows, arguments->douts);
  }
  if (error.empty()) {
    error = MakeMaps(problem.key_views, problem.head_dim, key_rows, arguments->keys);
  }
  if (error.empty()) {
    error = MakeMaps(problem.value_views, problem.head_dim, key_rows, arguments->values);
  }
  return error;
}

__device__ inline int64_t TokenOf(const TileRows& rows, const int64_t* steps, int row) {
  return rows.residue + static_cast<int64_t>(rows.first + row) * steps[rows.view];
}

__device__ inline float At(const PerQuery& values, int batch, int64_t token, int head) {
  return values
      .data[batch * values.batch_stride + token * values.token_stride + head * values.head_stride];
}

// The shift of a query's exponents to base two; a query without a denominator has probabilities 0.
__device__ inline float Lse2(float lse) { return isinf(lse) ? INFINITY : lse * kLog2e; }

__device__ inline float* RowOf(const Gradient& gradient, int batch, int64_t token, int head) {
  return gradient.data + batch * gradient.batch_stride + token * gradient.token_stride +
         head * gradient.head_stride;
}

// Adds half `h` of an accumulator, times `factor`, to a row. Four lanes hold two columns of every
// eight each; after an exchange between neighbours each lane has four that are neighbours.
template <int kHeadDim>
__device__ inline void AddRow(float* out, const float (&values)[kHeadDim / 2], int h, int lane,
                              float factor, bool real) {
#pragma unroll
  for (int column = 0; column < kHeadDim; column += 16) {
    const int i = 4 * (column / 8) + 2 * h;
    const bool upper = lane & 1;
    float2 low = make_float2(values[i], values[i + 1]);
    float2 high = make_float2(values[i + 4], values[i + 5]);
    float2 give = upper ? low : high;
    give.x = __shfl_xor_sync(0xFFFFFFFF, give.x, 1);
    give.y = __shfl_xor_sync(0xFFFFFFFF, give.y, 1);
    (upper ? low : high) = give;
    if (real) {
      auto* at = reinterpret_cast<float4*>(out + column + 8 * (lane & 1) + 4 * (lane / 2 & 1));
      float4 sum = *at;
      sum.x = fmaf(low.x, factor, sum.x);
      sum.y = fmaf(low.y, factor, sum.y);
      sum.z = fmaf(high.x, factor, sum.z);
      sum.w = fmaf(high.y, factor, sum.w);
      *at = sum;
    }
  }
}

}  // namespace ringmaster::attention::kernels
