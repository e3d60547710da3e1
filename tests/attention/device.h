#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "attention/exchange/exchange.h"

namespace ringmaster::attention {

// "cpu" or "cuda". Opens libringmaster_cuda.so, which brings LibTorch's kernels and ours, or says
// on stderr why it does with LibTorch's. FailedPrecondition when there are none or no device.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// How in-process ranks on one CUDA device copy. All work on the default stream, so that a copy
// enqueued there is ordered behind what filled its source.
void CopyDeviceBytes(void* to, const void* from, size_t bytes, StreamHandle);

}  // namespace ringmaster::attention
