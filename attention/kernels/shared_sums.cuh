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

// Puts a consumer's accumulator, times `factor`, into shared memory. Four lanes store eight columns
// of a row, two of the eight 16-byte pieces of its 128 bytes, and half a warp four rows at a time:
// the swizzle would put two of them side by side into the same banks, so that odd rows store the
// pieces first that even ones store last.
template <int kWidth>
__device__ __forceinline__ void StoreSums(const float (&values)[kWidth / 2], float factor, int lane,
                                          SharedSums<kWidth>& shared) {
  const int row = threadIdx.x % sm90::kWarpGroup / 32 * 16 + lane / 4;
  const bool odd = row % 2 == 1;
  int first = row * kSumColumns + 4 * (lane % 4 / 2 ^ row % 8) + 2 * (lane % 2);
  first ^= odd ? kSumColumns / 2 : 0;
  // Found anew each time: the compiler would keep the places of all pairs, in local memory.
  asm volatile("" : "+r"(first));
#pragma unroll
  for (int box = 0; box < kWidth / kSumColumns; ++box) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int h = i % 2, block = i / 2;  // of two rows, eight columns of four
      const int here = kSumColumns / 2 * box + 4 * block + 2 * h;
      const int there = kSumColumns / 2 * box + 4 * (block ^ 2) + 2 * h;
      float* to = shared.columns[box] + (first ^ 8 * block) + 8 * h * kSumColumns;
      *reinterpret_cast<float2*>(to) =
          make_float2((odd ? values[there] : values[here]) * factor,
                      (odd ? values[there + 1] : values[here + 1]) * factor);
    }
  }
  sm90::FenceShared();
}

}  // namespace ringmaster::attention::kernels
