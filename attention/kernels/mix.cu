// Rows at the speed of memory: a thread holds 16 bytes of a row, as many lanes as that takes hold a
// row.
#include <cuda_bf16.h>
#include <math_constants.h>

#include "attention/kernels/mix.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int kThreads = 256;

// Parts of a place whose numbers are asked for before their weights are known: most places have no
// more.
constexpr int kAhead = 4;

// What a place's parts add up to, four numbers a lane. NaN, of a query or a key, goes on.
struct Mixed {
  float most;
  float sum = 0;
  float4 numbers = {};

  __device__ void Add(float lse, const float4& part) {
    if (lse == -CUDART_INF_F) {
      return;
    }
    const float weight = expf(lse - most);
    sum += weight;
    numbers.x += weight * part.x;
    numbers.y += weight * part.y;
    numbers.z += weight * part.z;
    numbers.w += weight * part.w;
  }

  __device__ uint2 Rounded() const {
    const float factor = sum == 0 ? 0 : 1 / sum;
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(numbers.x * factor, numbers.y * factor),
                                     __floats2bfloat162_rn(numbers.z * factor, numbers.w * factor)};
    return *reinterpret_cast<const uint2*>(pairs);
  }
  __device__ float Lse() const { return sum == 0 ? -CUDART_INF_F : most + logf(sum); }
};

template <int kLanes>
__global__ void __launch_bounds__(kThreads) MixParts(const MixProblem problem) {
  const int64_t place = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (place >= problem.places) {
    return;
  }
  const uint32_t begin = problem.merge_begin[place];
  const uint32_t count = problem.merge_begin[place + 1] - begin;
  if (count == 0) {
    return;
  }
  const int64_t batch = blockIdx.y, first = batch * problem.parts + begin;
  const float* all_lses = problem.part_lses + first;
  const auto part_at = [&](uint32_t i) {
    return __ldcs(reinterpret_cast<const float4*>(problem.part_outs) + (first + i) * kLanes + lane);
  };
  float lses[kAhead];
  float4 parts[kAhead];
#pragma unroll
  for (uint32_t i = 0; i < kAhead; ++i) {
    lses[i] = -CUDART_INF_F;
    if (i < count) {
      lses[i] = all_lses[i];
      parts[i] = part_at(i);
    }
  }
  Mixed mixed = {fmaxf(fmaxf(lses[0], lses[1]), fmaxf(lses[2], lses[3]))};
  for (uint32_t i = kAhead; i < count; ++i) {
    mixed.most = fmaxf(mixed.most, all_lses[i]);
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    mixed.Add(lses[i], parts[i]);
  }
  for (uint32_t i = kAhead; i < count; ++i) {
    mixed.Add(all_lses[i], part_at(i));
  }
  const int64_t to = batch * problem.places + place;
  __stcs(static_cast<uint2*>(problem.out) + to * kLanes + lane, mixed.Rounded());
  if (lane == 0) {
    problem.lse[to] = mixed.Lse();
  }
}

// Eight numbers of bf16, 16 bytes.
__device__ float Dot(const uint4& a, const uint4& b) {
  const uint32_t words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum += __uint_as_float(words_a[i] << 16) * __uint_as_float(words_b[i] << 16);
    sum += __uint_as_float(words_a[i] & 0xFFFF0000) * __uint_as_float(words_b[i] & 0xFFFF0000);
  }
  return sum;
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    DotRows(int64_t rows, const void* a, const void* b, float* dots) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  float sum = 0;
  if (row < rows) {
    const int64_t at = row * kLanes + lane;
    sum = Dot(__ldcs(static_cast<const uint4*>(a) + at), __ldcs(static_cast<const uint4*>(b) + at));
  }
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_down_sync(0xFFFFFFFF, sum, lanes, kLanes);
  }
  if (lane == 0 && row < rows) {
    dots[row] = sum;
  }
}

unsigned BlocksOf(int64_t rows, int lanes) {
  const int64_t rows_of_block = kThreads / lanes;
  return static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block);
}

std::string Said() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace

std::string Mix(const MixProblem& problem, cudaStream_t stream) {
  if (problem.places == 0) {
    return "";
  }
  const int lanes = problem.head_dim / 4;
  const dim3 blocks(BlocksOf(problem.places, lanes), static_cast<unsigned>(problem.batch));
  if (problem.head_dim == 128) {
    MixParts<32><<<blocks, kThreads, 0, stream>>>(problem);
  } else {
    MixParts<16><<<blocks, kThreads, 0, stream>>>(problem);
  }
  return Said();
}

std::string RowDots(int head_dim, int64_t rows, const void* a, const void* b, float* dots,
                    cudaStream_t stream) {
  if (rows == 0) {
    return "";
  }
  const unsigned blocks = BlocksOf(rows, head_dim / 8);
  if (head_dim == 128) {
    DotRows<16><<<blocks, kThreads, 0, stream>>>(rows, a, b, dots);
  } else {
    DotRows<8><<<blocks, kThreads, 0, stream>>>(rows, a, b, dots);
  }
  return Said();
}

}  // namespace ringmaster::attention::kernels
