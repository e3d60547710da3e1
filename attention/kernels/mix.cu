// Rows at the speed of memory: a thread holds 8 of a row's numbers, as many lanes as that takes
// hold a row.
#include <cuda_bf16.h>
#include <math_constants.h>

#include "attention/kernels/mix.h"

namespace ringmaster::attention::kernels {
namespace {

constexpr int kNumbers = 8;  // 16 bytes
constexpr int kThreads = 256;

// Rows of a place whose numbers are asked for before their weights are known: most places have no
// more.
constexpr int kAhead = 4;

struct Numbers {
  float of[kNumbers] = {};
};

__device__ uint4 Load(const void* rows, int64_t row, int lanes, int lane) {
  return __ldcs(static_cast<const uint4*>(rows) + row * lanes + lane);
}

__device__ Numbers Unpack(const uint4& bits) {
  Numbers numbers;
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    numbers.of[2 * i] = __uint_as_float(words[i] << 16);
    numbers.of[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
  return numbers;
}

__device__ uint4 Pack(const Numbers& numbers, float factor) {
  uint4 bits;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&bits);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = __floats2bfloat162_rn(numbers.of[2 * i] * factor, numbers.of[2 * i + 1] * factor);
  }
  return bits;
}

// What a place's rows add up to. NaN, of a query or a key, goes on to the result.
struct Mixed {
  float most;
  float sum = 0;
  Numbers numbers;

  __device__ void Add(float lse, const uint4& bits) {
    if (lse == -CUDART_INF_F) {
      return;
    }
    const float weight = expf(lse - most);
    const Numbers row = Unpack(bits);
    sum += weight;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      numbers.of[n] += weight * row.of[n];
    }
  }
};

template <int kLanes>
__global__ void __launch_bounds__(kThreads) MixRows(const MixProblem problem) {
  const int64_t place = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (place >= problem.places) {
    return;
  }
  const uint32_t begin = problem.merge_begin[place];
  const uint32_t count = problem.merge_begin[place + 1] - begin;
  const int64_t batch = blockIdx.y, before = batch * problem.rows;
  const auto row_at = [&](uint32_t i) { return before + problem.merge_rows[begin + i]; };
  float lses[kAhead];
  uint4 bits[kAhead];
#pragma unroll
  for (uint32_t i = 0; i < kAhead; ++i) {
    lses[i] = -CUDART_INF_F;
    if (i < count) {
      const int64_t row = row_at(i);
      lses[i] = problem.row_lses[row];
      bits[i] = Load(problem.row_outs, row, kLanes, lane);
    }
  }
  Mixed mixed = {fmaxf(fmaxf(lses[0], lses[1]), fmaxf(lses[2], lses[3]))};
  for (uint32_t i = kAhead; i < count; ++i) {
    mixed.most = fmaxf(mixed.most, problem.row_lses[row_at(i)]);
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    mixed.Add(lses[i], bits[i]);
  }
  for (uint32_t i = kAhead; i < count; ++i) {
    const int64_t row = row_at(i);
    mixed.Add(problem.row_lses[row], Load(problem.row_outs, row, kLanes, lane));
  }
  const bool nothing = mixed.sum == 0;
  const int64_t to = batch * problem.places + place;
  __stcs(static_cast<uint4*>(problem.out) + to * kLanes + lane,
         Pack(mixed.numbers, nothing ? 0 : 1 / mixed.sum));
  if (lane == 0) {
    problem.lse[to] = nothing ? -CUDART_INF_F : mixed.most + logf(mixed.sum);
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    DotRows(int64_t rows, const void* a, const void* b, float* dots) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  float sum = 0;
  if (row < rows) {
    const Numbers x = Unpack(Load(a, row, kLanes, lane)), y = Unpack(Load(b, row, kLanes, lane));
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      sum += x.of[n] * y.of[n];
    }
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
  const int lanes = problem.head_dim / kNumbers;
  const dim3 blocks(BlocksOf(problem.places, lanes), static_cast<unsigned>(problem.batch));
  if (problem.head_dim == 128) {
    MixRows<16><<<blocks, kThreads, 0, stream>>>(problem);
  } else {
    MixRows<8><<<blocks, kThreads, 0, stream>>>(problem);
  }
  return Said();
}

std::string RowDots(int head_dim, int64_t rows, const void* a, const void* b, float* dots,
                    cudaStream_t stream) {
  if (rows == 0) {
    return "";
  }
  const unsigned blocks = BlocksOf(rows, head_dim / kNumbers);
  if (head_dim == 128) {
    DotRows<16><<<blocks, kThreads, 0, stream>>>(rows, a, b, dots);
  } else {
    DotRows<8><<<blocks, kThreads, 0, stream>>>(rows, a, b, dots);
  }
  return Said();
}

}  // namespace ringmaster::attention::kernels
