#pragma once

#include <stdint.h>

#include "attention/kernels/sm90_products.cuh"
#include "attention/kernels/tile_loads.cuh"

// What consumers do with rows in shared memory.
namespace ringmaster::attention::kernels {

constexpr int kWarpsOfConsumer = sm90::kWarpGroup / 32;
constexpr int kBytesOf16Rows = 16 * kColumns * 2;

// One consumer warpgroup of a block, as each of its threads knows it.
template <int kConsumers>
struct ConsumerGroup {
  __device__ explicit ConsumerGroup(int index)
      : index(index),
        lane(threadIdx.x % 32),
        row(index * kRowsOfConsumer + threadIdx.x % sm90::kWarpGroup / 32 * 16 + lane / 4) {}

  // The thread holds columns of two rows of the block's accumulators, `row` and row + 8: register
  // i is of row + 8 * (i / 2 & 1) and of this column.
  __device__ int Column(int i) const { return 8 * (i / 4) + 2 * (lane % 4) + (i & 1); }

  // The groups' products take turns, so that what one computes of them runs under the products of
  // the others.
  __device__ void StartTurns() const {
    if (index == kConsumers - 1) {
      GiveTurn();
    }
  }
  __device__ void AwaitTurn() const { sm90::SyncNamed(1 + index, 2 * sm90::kWarpGroup); }
  __device__ void GiveTurn() const {
    sm90::ArriveNamed(1 + (index + 1) % kConsumers, 2 * sm90::kWarpGroup);
  }

  // Gives a buffer back. One lane a warp: a warp's products read only its quarter of their first
  // operand but all of the buffer.
  template <int kBuffers>
  __device__ void Release(PipelineOf<kBuffers>& pipeline, int stage) const {
    __syncwarp();
    if (lane == 0) {
      sm90::Arrive(&pipeline.empty[stage]);
    }
  }

  const int index;
  const int lane;
  const int row;
};

// Starts d = a * b^T of 64 rows of a, from `first` on, or d += a * b^T.
template <bool kAdd = false, typename Element, int kRowsOfA, int kRowsOfB, int kHeadDim>
__device__ __forceinline__ void Multiply(float (&d)[kRowsOfB / 2],
                                         const SharedRows<Element, kRowsOfA, kHeadDim>& a,
                                         const SharedRows<Element, kRowsOfB, kHeadDim>& b,
                                         int first = 0) {
  sm90::PinRegisters(d);
  sm90::FenceProducts();
  const uint64_t rows = sm90::MatrixDescriptor(a.columns[0] + first * kColumns, 0);
  const uint64_t columns = sm90::MatrixDescriptor(b.columns[0], 0);
#pragma unroll
  for (int depth = 0; depth < kHeadDim; depth += 16) {
    const int half = depth / kColumns, bytes = 2 * (depth % kColumns);
    sm90::MultiplyRows<Element>(d, sm90::Behind(rows, half * sizeof(a.columns[0]) + bytes),
                                sm90::Behind(columns, half * sizeof(b.columns[0]) + bytes),
                                kAdd || depth > 0);
  }
  sm90::CommitProducts();
}

// Starts d += a * b, a in registers.
template <typename Element, int kRows, int kHeadDim>
__device__ __forceinline__ void Accumulate(float (&d)[kHeadDim / 2],
                                           const uint32_t (&a)[kRows / 16][4],
                                           const SharedRows<Element, kRows, kHeadDim>& b) {
  sm90::PinRegisters(d);
  sm90::FenceProducts();
  const uint64_t rows = sm90::MatrixDescriptor(b.columns[0], sizeof(b.columns[0]));
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    sm90::MultiplyAdd<Element>(d, a[step], sm90::Behind(rows, step * kBytesOf16Rows));
  }
  sm90::CommitProducts();
}

// Starts d = a^T * b of the columns of b from `first` on, as many as d has.
template <int kRows, int kColumnsOfD, typename Element, int kHeadDim>
__device__ __forceinline__ void MultiplyTransposed(float (&d)[kColumnsOfD / 2],
                                                   const SharedRows<Element, kRows, 64>& a,
                                                   const SharedRows<Element, kRows, kHeadDim>& b,
                                                   int first) {
  sm90::PinRegisters(d);
  sm90::FenceProducts();
  const uint64_t rows = sm90::MatrixDescriptor(a.columns[0], 0);
  const uint64_t columns =
      sm90::MatrixDescriptor(b.columns[first / kColumns] + first % kColumns, 0);
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
    sm90::MultiplyColumns<Element>(d, sm90::Behind(rows, step * kBytesOf16Rows),
                                   sm90::Behind(columns, step * kBytesOf16Rows), step > 0);
  }
  sm90::CommitProducts();
}

// Where two-byte column `column`, a multiple of 8, of a row lies: 16-byte pieces are swizzled
// within the 128 bytes of a row.
template <typename Element, int kRows, int kHeadDim>
__device__ __forceinline__ uint16_t* PieceOf(SharedRows<Element, kRows, kHeadDim>& shared, int row,
                                             int column) {
  return shared.columns[column / kColumns] + row * kColumns + (column % kColumns ^ 8 * (row % 8));
}

// Puts a consumer's packed accumulator into rows `first`, first + 1, ... of shared memory.
template <int kCount, typename Element, int kRows, int kHeadDim>
__device__ __forceinline__ void StoreRows(const uint32_t (&packed)[kCount][4], int first, int lane,
                                          SharedRows<Element, kRows, kHeadDim>& shared) {
  const int row = first + threadIdx.x % sm90::kWarpGroup / 32 * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sm90::StoreBlocks(PieceOf(shared, row, 16 * i + lane / 16 * 8), packed[i]);
  }
}

// An accumulator is laid out as the first operand of the next product is.
template <typename Element, int kCount>
__device__ __forceinline__ void Pack(const float (&values)[kCount],
                                     uint32_t (&packed)[kCount / 8][4]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    packed[i / 8][i / 2 % 4] = Element::Pack(values[i], values[i + 1]);
  }
}

// To within 2^-22: of the result, or, where x is close to 1, of 1.
__device__ inline float Log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ringmaster::attention::kernels
