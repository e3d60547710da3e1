#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"

// Workers that an operator keeps from getting work. The cordon belongs to the worker's name and is
// stored, so that it outlives processes, the worker's and the coordinator's.
namespace ringmaster::coordinator {

absl::StatusOr<v1::Worker> CordonWorker(State& state, const v1::CordonWorkerRequest& request);
absl::StatusOr<v1::Worker> DrainWorker(State& state, const v1::DrainWorkerRequest& request);
absl::StatusOr<v1::Worker> UncordonWorker(State& state, const v1::UncordonWorkerRequest& request);

// Whether the ring forms again without this member: one with a cordon, unless it alone holds steps
// of the job that neither those that stay nor a checkpoint have. REQUIRES: the rank has a member.
bool LeavesRing(State& state, const Job& job, int rank);

// "workers/a is drained: its disk is replaced", of a member that the job's ring is to leave; empty
// when there is none.
std::string DrainOf(const State& state, const Job& job);

}  // namespace ringmaster::coordinator
