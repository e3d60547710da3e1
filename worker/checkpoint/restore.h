#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "ringmaster/v1/checkpoint_service.pb.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// Fills every tensor of `tensors` from the checkpoint's shards, whatever world wrote them;
// floating-point types are converted. All shards are checked against the manifest (size, XXH3-64),
// and all names and shapes, before the first byte is copied: on these errors `tensors` are as they
// were. NotFound or DataLoss: a shard is missing or damaged; InvalidArgument: it does not hold a
// tensor, or one of another shape. Messages name file and tensor. Blocks; Cancelled soon after
// `cancelled` says so.
absl::Status LoadTensors(
    const v1::Checkpoint& checkpoint, absl::Span<const TrainingState::NamedTensor> tensors,
    absl::FunctionRef<bool()> cancelled = [] { return false; });

// The whole state, which then stands for checkpoint.step().
absl::Status RestoreState(
    const v1::Checkpoint& checkpoint, TrainingState& state,
    absl::FunctionRef<bool()> cancelled = [] { return false; });

// The parameters only; the state then stands for step 0 (`init_from`). REQUIRES: `state` is fresh.
absl::Status RestoreWeights(
    const v1::Checkpoint& checkpoint, TrainingState& state,
    absl::FunctionRef<bool()> cancelled = [] { return false; });

}  // namespace ringmaster::worker
