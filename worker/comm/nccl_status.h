#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ringmaster::worker {

// What NCCL and CUDA say as a Status; `what` was tried. A broken connection to a peer is
// Unavailable, no memory ResourceExhausted, all else Internal. ncclInProgress is OK: who cares for
// the difference looks before. `comm` may be null; it knows details.
absl::Status NcclStatus(ncclResult_t result, absl::string_view what, ncclComm_t comm);
absl::Status CudaStatus(cudaError_t error, absl::string_view what);
// Runs `body`, which asks LibTorch's caching allocator; that one throws, and nothing thrown may
// leave the plugin.
absl::Status AllocatorStatus(absl::string_view what, absl::FunctionRef<void()> body);

}  // namespace ringmaster::worker
