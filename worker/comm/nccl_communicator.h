#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// Device memory over NCCL, through libringmaster_cuda.so. Wait only orders streams; what really
// arrived is known after Settle. Groups run one after the other in the order of Start (see
// nccl_ring.h). Errors as OpenCommunicator.
absl::StatusOr<std::unique_ptr<Communicator>> OpenNcclCommunicator(
    const CommunicatorOptions& options);

}  // namespace ringmaster::worker
