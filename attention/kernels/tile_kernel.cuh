#pragma once

#include <stdint.h>

#include <limits>
#include <string>
#include <vector>

#include "attention/kernels/sm90.cuh"
#include "attention/kernels/sm90_products.cuh"
#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_attention.h"

// What the kernels over tiles have in common.
namespace ringmaster::attention::kernels {

constexpr int kColumns = 64;  // of a swizzled row
constexpr int kElementBytes = 2;
constexpr int kRowsOfConsumer = 64;
constexpr int kStages = 2;
constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The blocks of keys of a tile, one after the other; producer and consumers walk alike.
template <int kKeys>
class KeyWalk {
 public:
  __device__ KeyWalk(const TileKeys* list, const Tile& tile)
      : at_(list + tile.keys_begin), end_(list + tile.keys_end), rows_(tile.count) {
    Load();
  }

  __device__ bool done() const { return at_ == end_; }
  __device__ const TileKeys& keys() const { return keys_; }
  __device__ int first() const { return first_; }

  __device__ void Next() {
    first_ += kKeys;
    if (first_ >= visible_) {
      ++at_;
      Load();
    }
  }

 private:
  __device__ void Load() {
    first_ = 0;
    for (; at_ != end_; ++at_) {
      keys_ = *at_;
      visible_ = min(keys_.count, rows_ + keys_.diagonal);
      if (visible_ > 0) {
        return;
      }
    }
  }

  const TileKeys* at_;
  const TileKeys* end_;
  TileKeys keys_;
  int rows_;
  int visible_ = 0;
  int first_ = 0;
};

struct Ring {
  int stage = 0;
  int phase = 0;
  __device__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <int kRows, int kHalves>
__device__ void LoadRows(uint16_t (&shared)[kHalves][kRows * kColumns], const ViewMaps* views,
                         const TileRows& rows, int first, int batch, uint64_t* barrier) {
  const ViewMaps& view = views[rows.view];
  const CUtensorMap& map = rows.residue < view.longer_residues ? view.longer : view.shorter;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    sm90::LoadBox(shared[half], map, barrier, half * kColumns, rows.head, rows.residue,
                  rows.first + first, batch);
  }
}

__device__ inline uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Dynamic shared memory from its first swizzle pattern on; kSharedSlack bytes more are asked for.
constexpr int kSharedSlack = 1024;
__device__ inline uint8_t* AlignShared(uint8_t* raw) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + kSharedSlack - 1) &
                                    ~uintptr_t{kSharedSlack - 1});
}

// One block for each tile and batch entry.
template <typename S, typename Arguments>
std::string LaunchTiles(void (*kernel)(Arguments), size_t shared_bytes, const Arguments& arguments,
                        int tiles, int64_t batch, cudaStream_t stream) {
  const int bytes = static_cast<int>(shared_bytes) + kSharedSlack;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    kernel<<<dim3(tiles, batch), S::kThreads, bytes, stream>>>(arguments);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

inline std::string MakeMaps(const std::vector<View>& views, int head_dim, int box_rows,
                            ViewMaps* maps) {
  for (const View& view : views) {
    if (const std::string error = MakeViewMaps(view, head_dim, box_rows, maps++); !error.empty()) {
      return error;
    }
  }
  return "";
}

}  // namespace ringmaster::attention::kernels
