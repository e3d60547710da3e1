#include "tests/attention/device.h"

#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::attention {

namespace {

// LibTorch's CUDA part alone, beside libtorch_cpu.so wherever that came from.
absl::Status OpenStockOperations() {
  Dl_info library{};
  std::string path = "libtorch_cuda.so";
  if (::dladdr(reinterpret_cast<const void*>(&at::globalContext), &library) != 0) {
    const std::string cpu = library.dli_fname;
    path = absl::StrCat(cpu.substr(0, cpu.rfind('/') + 1), path);
  }
  return ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr
             ? absl::OkStatus()
             : absl::FailedPreconditionError(absl::StrCat("--device cuda: ", ::dlerror()));
}

}  // namespace

absl::StatusOr<at::Device> OpenDevice(const std::string& name) {
  if (name == "cpu") {
    return at::Device(at::kCPU);
  }
  if (const auto plugin = worker::CudaPlugin::Open(); !plugin.ok()) {
    std::fprintf(stderr, "stock operations only: %s\n", plugin.status().ToString().c_str());
    RETURN_IF_ERROR(OpenStockOperations());
  }
  if (!at::globalContext().hasCUDA()) {
    return absl::FailedPreconditionError("--device cuda: no CUDA device was found");
  }
  return at::Device(at::kCUDA, 0);
}

void CopyDeviceBytes(void* to, const void* from, size_t bytes, StreamHandle) {
  const at::Device device(at::kCUDA, 0);
  const auto wrap = [&](void* data) {
    return at::for_blob(data, {static_cast<int64_t>(bytes)})
        .options(at::TensorOptions(at::kByte).device(device))
        .target_device(device)
        .make_tensor();
  };
  wrap(to).copy_(wrap(const_cast<void*>(from)));
}

}  // namespace ringmaster::attention
