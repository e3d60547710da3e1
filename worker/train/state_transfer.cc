#include "worker/train/state_transfer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/collectives.h"
#include "worker/torch_status.h"

namespace ringmaster::worker {

absl::Status CopyStateFromPeer(TrainingState& state, Communicator& communicator, int donor,
                               absl::Span<const int> receivers, int64_t step) {
  attention::GroupedExchange& world = communicator.world();
  const bool gives = world.rank() == donor;
  const bool receives =
      !gives && std::find(receivers.begin(), receivers.end(), world.rank()) != receivers.end();
  if (!gives && !receives) {
    return absl::OkStatus();
  }
  if (gives && (!state.clean() || state.step() != step)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "rank ", donor, " is to give its state at step ", step, " to its peers, but holds step ",
        state.step(), state.clean() ? "" : ", half written"));
  }
  if (receives) {
    state.MarkDirty();
  }
  RETURN_IF_ERROR(CatchTorch(
      absl::StrCat("copying the state of step ", step, " from rank ", donor),
      [&]() -> absl::Status {
        for (const at::Tensor& part : {state.parameters(), state.exp_avg(), state.exp_avg_sq()}) {
          RETURN_IF_ERROR(Broadcast(world, part, donor, receivers));
        }
        RETURN_IF_ERROR(communicator.Settle());
        if (receives) {
          state.MarkClean(step);
        }
        return absl::OkStatus();
      }));
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
