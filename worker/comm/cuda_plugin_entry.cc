// The one door of libringmaster_cuda.so.

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/comm/cuda_plugin_abi.h"
#include "worker/comm/nccl_ring.h"
#include "worker/comm/nccl_status.h"

struct RingmasterNcclRing {
  std::unique_ptr<ringmaster::worker::NcclRing> ring;
};

namespace ringmaster::worker {
namespace {

using Result = RingmasterCudaResult;

template <size_t kSize>
void CopyText(absl::string_view text, char (&to)[kSize]) {
  const size_t length = std::min(text.size(), kSize - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

Result ToResult(const absl::Status& status) {
  Result result = {};
  result.code = static_cast<int>(status.code());
  CopyText(status.message(), result.message);
  return result;
}

Result CountDevices(int* count) {
  *count = 0;
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    *count = 0;
    return ToResult(absl::OkStatus());
  }
  return ToResult(CudaStatus(error, "counting CUDA devices"));
}

Result Describe(int device, RingmasterCudaDevice* description) {
  const std::string what = absl::StrCat("asking CUDA device ", device);
  cudaDeviceProp properties;
  absl::Status status = CudaStatus(cudaSetDevice(device), what);
  status.Update(CudaStatus(cudaGetDeviceProperties(&properties, device), what));
  size_t free = 0;
  size_t total = 0;
  status.Update(CudaStatus(cudaMemGetInfo(&free, &total), what));
  if (status.ok()) {
    CopyText(properties.name, description->name);
    description->total_bytes = total;
    description->free_bytes = free;
    description->major = properties.major;
    description->minor = properties.minor;
  }
  return ToResult(status);
}

Result SetDevice(int device) {
  return ToResult(CudaStatus(cudaSetDevice(device), absl::StrCat("choosing CUDA device ", device)));
}

// The allocator exists once a tensor does.
c10::cuda::CUDACachingAllocator::CUDAAllocator* Allocator() {
  auto* allocator = c10::cuda::CUDACachingAllocator::get();
  return allocator != nullptr && allocator->initialized() ? allocator : nullptr;
}

Result Memory(int device, RingmasterCudaMemory* memory) {
  *memory = {};
  return ToResult(AllocatorStatus("asking for the memory in use", [&] {
    if (auto* allocator = Allocator(); allocator != nullptr) {
      const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
      memory->allocated_bytes = stats.allocated_bytes[0].current;
      memory->reserved_bytes = stats.reserved_bytes[0].current;
      memory->peak_allocated_bytes = stats.allocated_bytes[0].peak;
      memory->peak_reserved_bytes = stats.reserved_bytes[0].peak;
    }
  }));
}

Result ResetPeakMemory(int device) {
  return ToResult(AllocatorStatus("resetting the peak of memory", [device] {
    if (auto* allocator = Allocator(); allocator != nullptr) {
      allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    }
  }));
}

Result EmptyCache() {
  return ToResult(AllocatorStatus("giving cached memory back", [] {
    if (auto* allocator = Allocator(); allocator != nullptr) {
      allocator->emptyCache();
    }
  }));
}

Result Allocate(uint64_t bytes, void** memory) {
  return ToResult(
      CudaStatus(cudaMalloc(memory, bytes), absl::StrCat("allocating ", bytes, " bytes")));
}

void Release(void* memory) { static_cast<void>(cudaFree(memory)); }

Result Copy(void* to, const void* from, uint64_t bytes) {
  absl::Status status =
      CudaStatus(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying device memory");
  // A copy from host memory may return before it has arrived.
  status.Update(CudaStatus(cudaStreamSynchronize(nullptr), "copying device memory"));
  return ToResult(status);
}

Result NcclVersion(char version[32], char path[512]) {
  const auto loaded = FindNccl();
  if (loaded.ok()) {
    CopyText(loaded->version, *reinterpret_cast<char(*)[32]>(version));
    CopyText(loaded->path, *reinterpret_cast<char(*)[512]>(path));
  }
  return ToResult(loaded.status());
}

Result NcclOpen(const RingmasterNcclOptions* options, RingmasterNcclRing** ring,
                char address[512]) {
  auto opened = NcclRing::Open(*options);
  if (opened.ok()) {
    CopyText((*opened)->address(), *reinterpret_cast<char(*)[512]>(address));
    *ring = new RingmasterNcclRing{*std::move(opened)};
  }
  return ToResult(opened.status());
}

Result NcclConnect(RingmasterNcclRing* ring, const char* const* addresses, size_t address_count,
                   double deadline_seconds) {
  return ToResult(
      ring->ring->Connect(std::vector<std::string>(addresses, addresses + address_count),
                          absl::Seconds(deadline_seconds)));
}

Result NcclStart(RingmasterNcclRing* ring, const RingmasterNcclMessage* sends, size_t send_count,
                 const RingmasterNcclMessage* receives, size_t receive_count, void* producer_stream,
                 uint64_t* ticket) {
  const auto started = ring->ring->Start(absl::MakeConstSpan(sends, send_count),
                                         absl::MakeConstSpan(receives, receive_count),
                                         static_cast<cudaStream_t>(producer_stream));
  *ticket = started.value_or(0);
  return ToResult(started.status());
}

Result NcclWait(RingmasterNcclRing* ring, uint64_t ticket, void* consumer_stream) {
  return ToResult(ring->ring->Wait(ticket, static_cast<cudaStream_t>(consumer_stream)));
}

Result NcclSettle(RingmasterNcclRing* ring) { return ToResult(ring->ring->Settle()); }

Result NcclClose(RingmasterNcclRing* ring) { return ToResult(ring->ring->Close()); }

void NcclAbort(RingmasterNcclRing* ring, const char* reason) { ring->ring->Abort(reason); }

Result NcclAwaitReleased(RingmasterNcclRing* ring, double deadline_seconds) {
  return ToResult(ring->ring->AwaitReleased(absl::Seconds(deadline_seconds)));
}

void NcclDestroy(RingmasterNcclRing* ring) {
  NcclRing::Discard(std::move(ring->ring));
  delete ring;
}

constexpr RingmasterCudaApi kApi = {
    .abi_version = RINGMASTER_CUDA_ABI_VERSION,
    .CountDevices = CountDevices,
    .Describe = Describe,
    .SetDevice = SetDevice,
    .Memory = Memory,
    .ResetPeakMemory = ResetPeakMemory,
    .EmptyCache = EmptyCache,
    .Allocate = Allocate,
    .Release = Release,
    .Copy = Copy,
    .NcclVersion = NcclVersion,
    .NcclOpen = NcclOpen,
    .NcclConnect = NcclConnect,
    .NcclStart = NcclStart,
    .NcclWait = NcclWait,
    .NcclSettle = NcclSettle,
    .NcclClose = NcclClose,
    .NcclAbort = NcclAbort,
    .NcclAwaitReleased = NcclAwaitReleased,
    .NcclDestroy = NcclDestroy,
};

}  // namespace
}  // namespace ringmaster::worker

extern "C" __attribute__((visibility("default"))) const RingmasterCudaApi* RingmasterCudaApiOf() {
  return &ringmaster::worker::kApi;
}
