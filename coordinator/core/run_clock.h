#pragma once

#include "coordinator/core/state.h"

// How long a job has been RUNNING, which status.run_duration says, and spec.max_runtime, the most
// that it may come to.
namespace ringmaster::coordinator {

// Of a job that is RUNNING from now on, or at the start of the coordinator.
void StartRunClock(State& state, Job& job);
// It is RUNNING no longer; to be told before its state changes.
void StopRunClock(State& state, Job& job);
// Brings run_duration up to now. Does nothing unless the job is RUNNING.
void CountRunTime(const State& state, Job& job);
// The clock strikes again: when max_runtime is over, and now and then before.
void WindRunClock(State& state, const Job& job);

bool IsOverTime(const Job& job);

}  // namespace ringmaster::coordinator
