#include "worker/comm/nccl_status.h"

#include <c10/util/Exception.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace ringmaster::worker {

absl::Status NcclStatus(ncclResult_t result, absl::string_view what, ncclComm_t comm) {
  if (result == ncclSuccess || result == ncclInProgress) {
    return absl::OkStatus();
  }
  const bool peer = result == ncclRemoteError || result == ncclSystemError;
  std::string message = absl::StrCat(what, ": ", ncclGetErrorString(result));
  const char* details = comm != nullptr ? ncclGetLastError(comm) : nullptr;
  if (details != nullptr && *details != '\0') {
    absl::StrAppend(&message, " (", details, ")");
  }
  return absl::Status(peer ? absl::StatusCode::kUnavailable : absl::StatusCode::kInternal, message);
}

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) {
    return absl::OkStatus();
  }
  const auto code = error == cudaErrorMemoryAllocation ? absl::StatusCode::kResourceExhausted
                                                       : absl::StatusCode::kInternal;
  return absl::Status(
      code, absl::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

absl::Status AllocatorStatus(absl::string_view what, absl::FunctionRef<void()> body) {
  try {
    body();
    return absl::OkStatus();
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat(what, ": ", error.what_without_backtrace()));
  }
}

}  // namespace ringmaster::worker
