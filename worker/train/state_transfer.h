#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/comm/communicator.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// Copies `donor`'s state, which stands for `step`, to the ranks of `receivers` (RestorePlan), in
// chunks over the exchange of all ranks. Every rank calls it; those that neither give nor receive
// return at once. A receiver's state is dirty until all of it has truly arrived, and after a
// failure. FailedPrecondition when the donor's state is dirty or at another step, else the
// exchange's error.
absl::Status CopyStateFromPeer(TrainingState& state, Communicator& communicator, int donor,
                               absl::Span<const int> receivers, int64_t step);

}  // namespace ringmaster::worker
