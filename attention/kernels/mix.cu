// Rows at the speed of memory: a thread holds 16 bytes of a row, as many lanes as that takes hold a
// row.
#include <math_constants.h>

#include "attention/kernels/last_error.h"
#include "attention/kernels/mix.h"
#include "attention/kernels/rest.h"

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

  __device__ float4 Numbers() const {
    const float factor = sum == 0 ? 0 : 1 / sum;
    return {numbers.x * factor, numbers.y * factor, numbers.z * factor, numbers.w * factor};
  }
  __device__ float Lse() const { return sum == 0 ? -CUDART_INF_F : most + logf(sum); }
};

template <typename Element>
__device__ uint2 Rounded(const float4& numbers) {
  return {Element::Pack(numbers.x, numbers.y), Element::Pack(numbers.z, numbers.w)};
}

template <typename Element>
__device__ char4 RestsOf(const float4& numbers, const uint2& rounded) {
  const auto low = [](uint32_t pair) { return static_cast<uint16_t>(pair); };
  const auto high = [](uint32_t pair) { return static_cast<uint16_t>(pair >> 16); };
  return {RestOf<Element>(numbers.x, low(rounded.x)), RestOf<Element>(numbers.y, high(rounded.x)),
          RestOf<Element>(numbers.z, low(rounded.y)), RestOf<Element>(numbers.w, high(rounded.y))};
}

template <typename Element, int kLanes>
__global__ void __launch_bounds__(kThreads) MixParts(const MixProblem problem) {
  const int64_t at = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (at >= problem.mixed_places) {
    return;
  }
  const uint32_t begin = problem.begin[at];
  const uint32_t count = problem.begin[at + 1] - begin;
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
  const int64_t to = batch * problem.all_places + problem.places[at];
  const float4 numbers = mixed.Numbers();
  const uint2 rounded = Rounded<Element>(numbers);
  __stcs(static_cast<uint2*>(problem.out) + to * kLanes + lane, rounded);
  if (problem.rest != nullptr) {
    __stcs(reinterpret_cast<char4*>(problem.rest) + to * kLanes + lane,
           RestsOf<Element>(numbers, rounded));
  }
  if (lane == 0) {
    problem.lse[to] = mixed.Lse();
  }
}

// Eight elements, 16 bytes, and the rests of those of b.
template <typename Element>
__device__ float Dot(const uint4& a, const uint4& b, const uint2& rests) {
  const uint32_t words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
  const int8_t* rest = reinterpret_cast<const int8_t*>(&rests);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto add = [&](uint32_t of_a, uint32_t of_b, int8_t rest_of_b) {
      sum += Element::Float(Element::Extend(static_cast<uint16_t>(of_a))) *
             WithRest<Element>(static_cast<uint16_t>(of_b), rest_of_b);
    };
    add(words_a[i], words_b[i], rest[2 * i]);
    add(words_a[i] >> 16, words_b[i] >> 16, rest[2 * i + 1]);
  }
  return sum;
}

template <typename Element, int kLanes>
__global__ void __launch_bounds__(kThreads) StartRows(const StartsProblem problem) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool real = row < problem.tokens * problem.heads;
  float delta = 0;
  if (real) {
    const int64_t at = row * kLanes + lane;
    delta = Dot<Element>(__ldcs(static_cast<const uint4*>(problem.dout) + at),
                         __ldcs(static_cast<const uint4*>(problem.out) + at),
                         __ldcs(reinterpret_cast<const uint2*>(problem.rest) + at));
  }
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    delta += __shfl_down_sync(0xFFFFFFFF, delta, lanes, kLanes);
  }
  if (lane == 0 && real) {
    const float lse = problem.lse[row];
    const int64_t token = row / problem.heads, head = row % problem.heads;
    reinterpret_cast<float2*>(problem.starts)[token * 2 * PairsOfHeads(problem.heads) + head] =
        make_float2(isinf(lse) ? -INFINITY : -lse / problem.scale, -delta);
  }
}

unsigned BlocksOf(int64_t rows, int lanes) {
  const int64_t rows_of_block = kThreads / lanes;
  return static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block);
}

}  // namespace

std::string Mix(const MixProblem& problem, cudaStream_t stream) {
  if (problem.mixed_places == 0) {
    return "";
  }
  const int lanes = problem.head_dim / 4;
  const dim3 blocks(BlocksOf(problem.mixed_places, lanes), static_cast<unsigned>(problem.batch));
  WithElement(problem.type, [&](auto element) {
    const auto kernel =
        lanes == 32 ? MixParts<decltype(element), 32> : MixParts<decltype(element), 16>;
    kernel<<<blocks, kThreads, 0, stream>>>(problem);
  });
  return LastError();
}

std::string MakeStarts(const StartsProblem& problem, cudaStream_t stream) {
  const int64_t rows = problem.tokens * problem.heads;
  if (rows == 0) {
    return "";
  }
  const int lanes = problem.head_dim / 8;
  WithElement(problem.type, [&](auto element) {
    const auto kernel =
        lanes == 16 ? StartRows<decltype(element), 16> : StartRows<decltype(element), 8>;
    kernel<<<BlocksOf(rows, lanes), kThreads, 0, stream>>>(problem);
  });
  return LastError();
}

}  // namespace ringmaster::attention::kernels
