#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_attention.h"
#include "attention/kernels/tile_kernel.cuh"

// How kernels over tiles are started.
namespace ringmaster::attention::kernels {

inline cudaError_t Multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess
             ? cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device)
             : error;
}

template <typename K, typename Arguments>
cudaError_t LaunchKernel(const Arguments& arguments, cudaStream_t stream) {
  constexpr int kBytes = sizeof(typename K::Shared);
  static_assert(kBytes <= 227 * 1024, "more than a block can have");
  const auto kernel = TileKernel<K, Arguments>;
  int blocks = 0;
  cudaError_t error = Multiprocessors(&blocks);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  }
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(arguments.taken, 0, sizeof(*arguments.taken), stream);
  }
  if (error != cudaSuccess) {
    return error;
  }
  const int64_t tiles = int64_t{arguments.tile_count} * arguments.batches;
  kernel<<<static_cast<unsigned>(std::min<int64_t>(blocks, tiles)), kThreadsOf<K>, kBytes,
           stream>>>(arguments);
  return cudaGetLastError();
}

// Starts K<type, head_dim>. Empty, or what CUDA said.
template <template <typename, int> class K, typename Arguments>
std::string LaunchTiles(ElementType type, int head_dim, const Arguments& arguments,
                        cudaStream_t stream) {
  const cudaError_t error = WithElement(type, [&](auto element) {
    using Element = decltype(element);
    return head_dim == 128 ? LaunchKernel<K<Element, 128>>(arguments, stream)
                           : LaunchKernel<K<Element, 64>>(arguments, stream);
  });
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace ringmaster::attention::kernels
