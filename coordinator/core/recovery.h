#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/state.h"

// Giving a ring up and getting back to one: abort the survivors, collect enough workers (the placer
// does), or go back to the queue, or fail.
namespace ringmaster::coordinator {

struct RingLoss {
  v1::RecoveryEpisode::Cause cause = v1::RecoveryEpisode::CAUSE_UNSPECIFIED;
  // For people: who saw what.
  std::string message;
  // When the fault itself happened, where that is known.
  std::optional<absl::Time> fault_time;
  // The workers that left or are passed over.
  std::vector<std::string> lost_workers;
};

// The current generation cannot go on. Ends the job instead when its last checkpoint is committed
// already, or its budget is spent.
void GiveUpRing(State& state, Job& job, const RingLoss& loss);

// A member that is no longer to be counted on. The stored ranks say so too: the process may work
// for another job by the time they are read again.
void DropMember(Job& job, Worker& worker);

// A member's own report. Deterministic faults, and faults that come again and again at one step,
// end the job without touching the budget.
void OnFault(State& state, Job& job, int rank, const v1::Fault& fault);

void OnRingAborted(State& state, Job& job, int rank, const v1::RingAborted& aborted);

// A user's cancellation of a job that has a ring.
void BeginCancel(State& state, Job& job);

// Something changed about the members of an ABORTING ring: goes on when nobody is to be waited for.
void CheckAborted(State& state, Job& job);
// The members still aborting are no longer waited for.
void OnAbortTimeout(State& state, Job& job);
// No replacement was found in time.
void OnRejoinTimeout(State& state, Job& job);

// The pause before what failed so often in a row is tried again: none, 250 ms, doubled up to 30 s.
absl::Duration DelayAfter(int64_t failures);

// RECOVERING, aborted, in need of workers: what the placer serves first.
bool WaitsForWorkers(State& state, Job& job);

void TellAbort(State& state, const Job& job, int rank, const Worker& worker,
               const std::string& reason);

}  // namespace ringmaster::coordinator
