#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/cuda_plugin_abi.h"

namespace ringmaster::worker {

// What the plugin said, as a Status.
absl::Status PluginStatus(const RingmasterCudaResult& result);

struct CudaDevice {
  std::string name;
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
  int major = 0;
  int minor = 0;
};

// The worker's way to libringmaster_cuda.so: the worker itself links no CUDA. Loading it also
// registers LibTorch's CUDA kernels, so that tensors can live on a CUDA device from then on. Never
// unloaded. Thread-safe.
class CudaPlugin {
 public:
  // Opens the library on the first call, whose outcome stays: beside the program, in ../lib of it,
  // or where RINGMASTER_CUDA_PLUGIN says. FailedPrecondition, with the reason, when it is absent,
  // does not load, is of another version, or finds another NCCL than it was built for.
  static absl::StatusOr<const CudaPlugin*> Open();

  const RingmasterCudaApi& api() const { return *api_; }
  // "2.28.9"; the version that it was built for is the one that it found.
  const std::string& nccl_version() const { return nccl_version_; }

  // No driver and no device are zero devices.
  absl::StatusOr<int> CountDevices() const;
  absl::StatusOr<CudaDevice> Describe(int device) const;
  // For the calling thread: every thread that makes tensors on a device other than 0 wants it.
  absl::Status SetDevice(int device) const;
  // Of this process's tensors.
  absl::StatusOr<RingmasterCudaMemory> Memory(int device) const;
  absl::Status ResetPeakMemory(int device) const;
  // Gives cached memory back to the device; the first rung when memory runs out.
  absl::Status EmptyCache() const;

 private:
  static absl::StatusOr<CudaPlugin> Load();
  CudaPlugin(const RingmasterCudaApi* api, std::string nccl_version)
      : api_(api), nccl_version_(std::move(nccl_version)) {}

  const RingmasterCudaApi* api_;
  std::string nccl_version_;
};

}  // namespace ringmaster::worker
