// A libringmaster_cuda.so of a machine that has as many devices as FAKE_CUDA_DEVICES says, of
// compute capability FAKE_CUDA_MAJOR.5, or whose driver fails with the absl::StatusCode of
// FAKE_CUDA_ERROR.
#include <cstdio>
#include <cstdlib>

#include "worker/comm/cuda_plugin_abi.h"

namespace {

int Number(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

RingmasterCudaResult CountDevices(int* count) {
  *count = Number("FAKE_CUDA_DEVICES");
  return {.code = Number("FAKE_CUDA_ERROR"), .message = "the driver is resetting"};
}

RingmasterCudaResult Describe(int /*device*/, RingmasterCudaDevice* description) {
  *description = {
      .total_bytes = 1, .free_bytes = 1, .major = Number("FAKE_CUDA_MAJOR"), .minor = 5};
  std::snprintf(description->name, sizeof(description->name), "a card");
  return {.code = 0, .message = ""};
}

RingmasterCudaResult NcclVersion(char version[32], char path[512]) {
  std::snprintf(version, 32, "2");
  std::snprintf(path, 512, "here");
  return {.code = 0, .message = ""};
}

constexpr RingmasterCudaApi kApi = {.abi_version = RINGMASTER_CUDA_ABI_VERSION,
                                    .CountDevices = CountDevices,
                                    .Describe = Describe,
                                    .NcclVersion = NcclVersion};

}  // namespace

extern "C" const RingmasterCudaApi* RingmasterCudaApiOf() { return &kApi; }
