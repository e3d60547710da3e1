#pragma once

#include <vector>

#include "absl/types/span.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::coordinator {

// What a new generation may start from.
struct RestoreSources {
  // By rank, as RingJoin told it.
  std::vector<v1::HeldState> held;
  // Of this job, to be trusted, in any order.
  std::vector<v1::Checkpoint> checkpoints;
  // resume_from and init_from; at most one is set.
  const v1::Checkpoint* resume = nullptr;
  const v1::Checkpoint* init = nullptr;
};

// The highest clean step wins (one rank's vote proves it); among equals memory is better than disk:
// own state, else a peer's, else the newest checkpoint, else resume_from, else step 0 with fresh or
// given weights. States of one step that differ prove that something is corrupt: then a checkpoint
// is taken, and only without one the state that most ranks hold.
//
// FRESH with a checkpoint set means: step 0 with that checkpoint's parameters.
v1::RestorePlan PlanRestore(const RestoreSources& sources);

}  // namespace ringmaster::coordinator
