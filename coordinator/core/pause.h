#pragma once

#include <string>

#include "coordinator/core/state.h"

// Taking a job's workers away without losing a step, and giving it some again. What a user asked
// for stays in status.pause_requested until the ring can be let go. A job whose max_runtime is over
// loses them in the same way, and ends; one with a worker that is drained, or that a job of a
// higher priority needs, does, and is queued.
namespace ringmaster::coordinator {

// REQUIRES: the job has not ended and is not being cancelled.
void RequestPause(State& state, Job& job);
void RequestResume(State& state, Job& job);

// Spent time is counted, and a job that has none left stops.
void OnRunClock(State& state, Job& job);

// Why a ring that runs is to finish with the step under way; empty when it is not.
std::string ReasonToStop(const State& state, const Job& job);
// A ring that runs is told so when there is a reason.
void StopIfAsked(State& state, Job& job);

// A ring stands. Where the checkpoint it was last to stop with could not be written, an operator's
// drain is tried again later, as a recovery is. A ring that breaks until then does not put it off.
void DelayStop(State& state, Job& job);

// To a member of a ring whose steps have begun.
void TellFinish(State& state, const Job& job, int rank, const Worker& worker);

// All ranks of a ring that was told to finish have finished, before the job's last step.
void CompletePause(State& state, Job& job);
// Lets the ring of a job that pauses go, whatever became of it, when the step that it finished with
// is in a checkpoint; else returns false.
bool LeaveIfSaved(State& state, Job& job);

// The job has no ring any more: FAILED when its time is over, PAUSED when that was asked for, else
// QUEUED. The members are released.
void LeaveRing(State& state, Job& job, const std::string& reason);

}  // namespace ringmaster::coordinator
