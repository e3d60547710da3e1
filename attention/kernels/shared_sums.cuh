#pragma once

#include <stdint.h>

#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_products.cuh"

// Sums on their way from a consumer's registers to boxes that are added in memory.
namespace ringmaster::attention::kernels {

// Sums of 64 rows, kSumColumns columns after the other, swizzled as boxes are read.
template <int kWidth>
struct alignas(1024) SharedSums {
  float columns[kWidth / kSumColumns][kRowsOfConsumer * kSumColumns];
};

// Puts a consumer's accumulator, times `factor`, into shared memory.
template <int kWidth>
__device__ __forceinline__ void StoreSums(const float (&values)[kWidth / 2], float factor, int lane,
                                          SharedSums<kWidth>& shared) {
#pragma unroll
  for (int i = 0; i < kWidth / 2; i += 2) {
    const int row = threadIdx.x % sm90::kWarpGroup / 32 * 16 + lane / 4 + 8 * (i / 2 & 1);
    const int column = 8 * (i / 4) + 2 * (lane % 4);
    // The swizzle of 16-byte pieces, four numbers, within rows of 128 bytes.
    const int piece = column % kSumColumns / 4 ^ row % 8;
    float* to = shared.columns[column / kSumColumns] + row * kSumColumns + 4 * piece + column % 4;
    *reinterpret_cast<float2*>(to) = make_float2(values[i] * factor, values[i + 1] * factor);
  }
  sm90::FenceShared();
}

}  // namespace ringmaster::attention::kernels
