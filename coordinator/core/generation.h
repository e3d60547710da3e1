#pragma once

#include <vector>

#include "coordinator/core/state.h"

// A generation of a ring on its way: form, join, connect, ready, start, steps, finish. Giving it up
// is recovery.h's.
namespace ringmaster::coordinator {

// Stores generation + 1 with these members, by rank, and tells them. REQUIRES: as many as the job's
// world, all attached; the job is QUEUED, or RECOVERING with an aborted ring.
void BeginGeneration(State& state, Job& job, const std::vector<Worker*>& members);

// Reports of a member about the current generation.
void OnRingJoin(State& state, Job& job, int rank, const v1::RingJoin& join);
void OnRingReady(State& state, Job& job, int rank, const v1::RingReady& ready);
void OnStepsDone(State& state, Job& job, const v1::StepsDone& done);
void OnRingFinished(State& state, Job& job, int rank, const v1::RingFinished& finished);

// All ranks have finished: SUCCEEDED when the last step's checkpoint is committed, else what
// follows from its absence.
void CompleteIfFinished(State& state, Job& job);

// A member has re-attached: tells it what it must hear, from what is stored and what it says.
void ResyncMember(State& state, Job& job, int rank, const v1::Hello& hello);

// Join or ready took too long.
void OnFormTimeout(State& state, Job& job);

}  // namespace ringmaster::coordinator
