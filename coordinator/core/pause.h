#pragma once

#include "coordinator/core/state.h"

// Taking a job's workers away without losing a step, and giving it some again. What a user asked
// for stays in status.pause_requested until the ring can be let go.
namespace ringmaster::coordinator {

// REQUIRES: the job has not ended and is not being cancelled.
void RequestPause(State& state, Job& job);
void RequestResume(State& state, Job& job);

// To a member of a ring whose steps have begun.
void TellFinish(State& state, const Job& job, int rank, const Worker& worker);

// All ranks of a ring that was told to finish have finished, before the job's last step.
void CompletePause(State& state, Job& job);
// Lets the ring of a job that pauses go, whatever became of it, when the step that it finished with
// is in a checkpoint; else returns false.
bool LeaveIfSaved(State& state, Job& job);

// The job has no ring any more: PAUSED when that was asked for, else QUEUED. The members are
// released.
void LeaveRing(State& state, Job& job, const std::string& reason);

}  // namespace ringmaster::coordinator
