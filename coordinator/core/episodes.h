#pragma once

#include <optional>
#include <string>

#include "coordinator/core/state.h"

// What is written down of a recovery: its cause and how long each phase took. A fault during a
// recovery belongs to the same episode; its phases then add up.
namespace ringmaster::coordinator {

// Null when the job is not in a recovery.
v1::RecoveryEpisode* OpenEpisodeOf(Job& job);
// Of a ring just given up: how many generations in a row, this one included, were formed to recover
// and did not bring one step. 0 for a ring that had stepped.
int64_t FailedAttempts(Job& job);

// `fault_time`: when the fault itself happened, where that is known.
void BeginEpisode(State& state, Job& job, v1::RecoveryEpisode::Cause cause,
                  const std::string& message, std::optional<absl::Time> fault_time);
// Something better is known about the fault: a peer's broken connection was a process's end.
void ExplainEpisode(Job& job, v1::RecoveryEpisode::Cause cause, const std::string& message,
                    std::optional<absl::Time> fault_time);
void AddLostWorker(Job& job, const std::string& worker);
void AddJoinedWorker(Job& job, const std::string& worker);

// All survivors have aborted; the ring stands and every rank holds the state of `step`; a new step
// was done.
void MarkAborted(State& state, Job& job);
void MarkFormed(State& state, Job& job, int64_t step, int64_t restore_ms);
void MarkFirstStep(State& state, Job& job);

// The job ended within the recovery.
void CloseEpisode(State& state, Job& job);

}  // namespace ringmaster::coordinator
