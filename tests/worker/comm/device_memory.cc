#include "tests/worker/comm/device_memory.h"

#include <cstdio>
#include <cstdlib>

#include "worker/comm/cuda_plugin.h"

namespace ringmaster::worker {
namespace {

const RingmasterCudaApi& Cuda() {
  const auto plugin = CudaPlugin::Open();
  if (!plugin.ok()) {
    std::fprintf(stderr, "no CUDA: %s\n", plugin.status().ToString().c_str());
    std::exit(1);
  }
  return (*plugin)->api();
}

void Check(const RingmasterCudaResult& result) {
  if (result.code != 0) {
    std::fprintf(stderr, "%s\n", result.message);
    std::exit(1);
  }
}

void* Allocate(size_t bytes) {
  void* memory = nullptr;
  Check(Cuda().Allocate(bytes, &memory));
  return memory;
}
void Release(void* memory) { Cuda().Release(memory); }
void Copy(void* to, const void* from, size_t bytes) { Check(Cuda().Copy(to, from, bytes)); }

}  // namespace

DeviceMemory CudaMemory() { return {Allocate, Release, Copy}; }

}  // namespace ringmaster::worker
