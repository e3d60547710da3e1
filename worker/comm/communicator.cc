#include "worker/comm/communicator.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/cuda_plugin.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/ucx_address.h"
#include "worker/comm/ucx_communicator.h"

namespace ringmaster::worker {

namespace {

absl::Status Unknown(const std::string& transport) {
  return absl::InvalidArgumentError(
      absl::StrCat("unknown transport '", transport, "'; known: ucx, nccl"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> OpenCommunicator(const std::string& transport,
                                                               const CommunicatorOptions& options) {
  if (options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size ||
      options.generation < 0 || options.hop_deadline <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", options.rank, " of ", options.world_size, " ranks, generation ",
        options.generation, ", hop deadline ", absl::FormatDuration(options.hop_deadline)));
  }
  if (transport == "ucx") {
    return OpenUcxCommunicator(options);
  }
  if (transport == "nccl") {
    return OpenNcclCommunicator(options);
  }
  return Unknown(transport);
}

absl::StatusOr<std::string> TransportVersion(const std::string& transport) {
  if (transport == "ucx") {
    return absl::StrCat("ucx/", UcxAddress::Version());
  }
  if (transport == "nccl") {
    ASSIGN_OR_RETURN(const CudaPlugin* plugin, CudaPlugin::Open());
    return absl::StrCat("nccl/", plugin->nccl_version());
  }
  return Unknown(transport);
}

}  // namespace ringmaster::worker
