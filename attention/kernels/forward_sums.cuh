#pragma once

#include <stdint.h>

#include "attention/kernels/forward_arguments.cuh"

namespace ringmaster::attention::kernels {

// Parts of a place whose logarithms are asked for at once: most have no more.
constexpr int kAhead = 4;

// The sums of a softmax over the keys that a tile's rows have seen, as a consumer's thread holds
// them, two half rows; and what they become with other parts of the same softmax.
template <int kHeadDim, int kConsumers>
class ForwardSums {
 public:
  __device__ ForwardSums(const ForwardArguments& arguments, int group)
      : arguments_(arguments), group_(group) {}

  __device__ void Start(const Tile& tile) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most_[h] = kMinusInfinity;
      sum_[h] = 0;
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      out_[i] = 0;
    }
    AskWhereTo(tile);
  }

 protected:
  // Merges the other parts of the rows' places into them, as mix.h says; the numbers of a row are
  // multiplied with its factor yet. What both rows wait for is asked for at once.
  __device__ void Merge(int batch, float (&lse)[2], float (&factor)[2]) {
    const float* lses[2];
    float ahead[2][kAhead], shift[2], inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      lses[h] = arguments_.results.part_lses + batch * arguments_.results.parts + first_[h];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        ahead[h][i] = i < Parts(h) ? lses[h][i] : kMinusInfinity;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = lse[h];
      const auto for_each = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          f(ahead[h][i]);
        }
#pragma unroll 1
        for (int i = kAhead; i < Parts(h); ++i) {
          f(lses[h][i]);
        }
      };
      for_each([&](float part) { most = fmaxf(most, part); });
      shift[h] = most == kMinusInfinity ? 0 : most;
      const float own = Exp2((lse[h] - shift[h]) * kLog2e);
      float sum = own;
      for_each([&](float part) { sum += Exp2((part - shift[h]) * kLog2e); });
      const bool nothing = sum == 0;
      inverse[h] = nothing ? 0 : __fdividef(1, sum);
      Scale(h, factor[h] * own * inverse[h]);
      factor[h] = 1;
      lse[h] = nothing ? kMinusInfinity : fmaf(Log2(sum), kLn2, shift[h]);
    }
    // Not unrolled: instructions that are met once a tile wait to be fetched.
    const int most_parts = max(Parts(0), Parts(1));
#pragma unroll 1
    for (int i = 0; __any_sync(0xFFFFFFFF, i < most_parts); ++i) {
      float weights[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float part = i < Parts(h) ? lses[h][i] : kMinusInfinity;
        weights[h] = Exp2((part - shift[h]) * kLog2e) * inverse[h];
      }
      AddParts(i, batch, weights);
    }
  }

  const ForwardArguments& arguments_;
  const ConsumerGroup<kConsumers> group_;
  float out_[kHeadDim / 2];
  float most_[2];
  float sum_[2];
  // The parts that a row's result is merged with, and the part that it is, or kWhole.
  uint32_t first_[2], end_[2], part_[2];

 private:
  // Asks where the results of the thread's rows go, long before they are there.
  __device__ void AskWhereTo(const Tile& tile) {
    const Results& results = arguments_.results;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group_.row + 8 * h;
      const bool real = row < tile.count;
      first_[h] = end_[h] = 0;
      if (real && results.merge_begin != nullptr) {
        const uint32_t* begin = results.merge_begin + PlaceOf(arguments_, tile.rows, row);
        first_[h] = begin[0];
        end_[h] = begin[1];
      }
      part_[h] = real && results.slots != nullptr ? results.slots[tile.first_row + row] : kWhole;
    }
  }

  __device__ int Parts(int h) const { return static_cast<int>(end_[h] - first_[h]); }

  __device__ void Scale(int h, float factor) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) {
      if ((i / 2 & 1) == h) {
        out_[i] *= factor;
      }
    }
  }

  // Adds part i of both rows, where they have so many.
  __device__ void AddParts(int i, int batch, const float (&weights)[2]) {
    const Results& results = arguments_.results;
    float2 pairs[2][kHeadDim / 8];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* part = results.part_outs + (batch * results.parts + first_[h] + i) * kHeadDim;
#pragma unroll
      for (int block = 0; block < kHeadDim / 8; ++block) {
        pairs[h][block] = make_float2(0, 0);
        if (i < Parts(h)) {
          pairs[h][block] =
              __ldcs(reinterpret_cast<const float2*>(part + 8 * block) + group_.lane % 4);
        }
      }
    }
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 4 * block + 2 * h;
        out_[i] = fmaf(weights[h], pairs[h][block].x, out_[i]);
        out_[i + 1] = fmaf(weights[h], pairs[h][block].y, out_[i + 1]);
      }
    }
  }
};

}  // namespace ringmaster::attention::kernels
