#include "worker/comm/communicator.h"

#include "absl/strings/str_cat.h"
#include "worker/comm/nccl_communicator.h"
#include "worker/comm/ucx_communicator.h"

namespace ringmaster::worker {

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
  return absl::InvalidArgumentError(
      absl::StrCat("unknown transport '", transport, "'; known: ucx, nccl"));
}

}  // namespace ringmaster::worker
