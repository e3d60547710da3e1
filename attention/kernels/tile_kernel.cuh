#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_attention.h"
#include "attention/kernels/tile_loads.cuh"
#include "attention/kernels/tile_products.cuh"

// The frame of the kernels over tiles. One block computes one tile of one batch entry: a producer
// warpgroup loads, K::kConsumers consumer warpgroups multiply. A kernel K also has
//  - Shared, its shared memory, with an Init() of the barriers that one thread calls;
//  - Produce(arguments, shared, tile, batch, thread), which each thread of the producer calls;
//  - Consumer(arguments, shared, tile, batch, group), whose Run() each thread of a consumer calls.
namespace ringmaster::attention::kernels {

constexpr float kLog2e = 1.44269504088896340736f;

template <typename K>
constexpr int kThreadsOf = (K::kConsumers + 1) * sm90::kWarpGroup;

// Dynamic shared memory from its first swizzle pattern on; kSharedSlack bytes more are asked for.
constexpr int kSharedSlack = 1024;
__device__ inline uint8_t* AlignShared(uint8_t* raw) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + kSharedSlack - 1) &
                                    ~uintptr_t{kSharedSlack - 1});
}

template <typename K, typename Arguments>
__global__ void __launch_bounds__(kThreadsOf<K>, 1)
    TileKernel(const __grid_constant__ Arguments arguments) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<typename K::Shared*>(AlignShared(raw));
  if (threadIdx.x == 0) {
    shared.Init();
    sm90::FenceBarrierInit();
  }
  __syncthreads();
  const auto tile = arguments.tiles[blockIdx.x];
  // The same in all lanes, and the compiler is to know.
  const int group = __shfl_sync(0xFFFFFFFF, threadIdx.x / sm90::kWarpGroup, 0);
  // The register file divided by hand: consumers hold scores and sums.
  if (group == K::kConsumers) {
    sm90::ShrinkRegisters<K::kConsumers == 2 ? 24 : 32>();
    K::Produce(arguments, shared, tile, blockIdx.y, threadIdx.x % sm90::kWarpGroup);
  } else {
    sm90::GrowRegisters<K::kConsumers == 2 ? 240 : 160>();
    typename K::Consumer(arguments, shared, tile, blockIdx.y, group).Run();
  }
}

template <typename K, typename Arguments>
cudaError_t LaunchKernel(const Arguments& arguments, int tiles, int64_t batch,
                         cudaStream_t stream) {
  constexpr int kBytes = sizeof(typename K::Shared) + kSharedSlack;
  const auto kernel = TileKernel<K, Arguments>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) {
    return error;
  }
  kernel<<<dim3(tiles, batch), kThreadsOf<K>, kBytes, stream>>>(arguments);
  return cudaGetLastError();
}

// Starts K<head_dim>. Empty, or what CUDA said.
template <template <int> class K, typename Arguments>
std::string LaunchTiles(int head_dim, const Arguments& arguments, int tiles, int64_t batch,
                        cudaStream_t stream) {
  const cudaError_t error = head_dim == 128 ? LaunchKernel<K<128>>(arguments, tiles, batch, stream)
                                            : LaunchKernel<K<64>>(arguments, tiles, batch, stream);
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
