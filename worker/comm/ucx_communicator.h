#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// Host memory over UCX. Its executor thread owns the endpoints; a dead peer is noticed within a
// fraction of a second, a frozen one by the hop deadline. Errors as OpenCommunicator.
absl::StatusOr<std::unique_ptr<Communicator>> OpenUcxCommunicator(
    const CommunicatorOptions& options);

}  // namespace ringmaster::worker
