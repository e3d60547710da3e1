#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "attention/exchange.h"

namespace ringmaster::attention {

// "cpu" or "cuda". Opens LibTorch's CUDA part, which registers its kernels. FailedPrecondition when
// there is none or no device.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// How in-process ranks on one CUDA device copy. All work on the default stream, so that a copy
// enqueued there is ordered behind what filled its source.
void CopyDeviceBytes(void* to, const void* from, size_t bytes, StreamHandle);

}  // namespace ringmaster::attention
