#pragma once

#include <string>

#include "absl/status/status.h"
#include "coordinator/core/state.h"

// A job's states: which transitions are legal, and what each brings about.
namespace ringmaster::coordinator {

using JobState = v1::TrainingJobStatus::State;

bool IsTerminal(JobState state);
// The transitions drawn above TrainingJobStatus.State, and no others.
bool IsLegal(JobState from, JobState to);

// Takes a job into memory; it must be in the state that its record says.
Job& AddJob(State& state, store::JobRecord record);
// Forgets it, row included.
void RemoveJob(State& state, Job& job);

// The one place that changes a state. Updates times, etag, indices and counters; a terminal state
// also closes the open episode. REQUIRES: IsLegal; an illegal change is not made.
void SetState(State& state, Job& job, JobState to, const std::string& reason);

// A job whose priority has changed leaves the place `from` for its new one, among those that wait
// or run.
void MoveInQueue(State& state, Job& job, const QueueKey& from);

// Another etag: something changed that the job's user decides.
void SetEtag(Job& job);

// FAILED; the members are released.
void Fail(State& state, Job& job, v1::FailureClass failure_class, const std::string& reason);
// SUCCEEDED; the members are released.
void Succeed(State& state, Job& job);
// CANCELLED; the members are released.
void FinishCancel(State& state, Job& job);

// Members forget the job and are idle: the ring's last word.
void ReleaseMembers(State& state, Job& job, const std::string& reason);
void TellRelease(State& state, const Worker& worker, const std::string& job, const std::string& uid,
                 int64_t generation, const std::string& reason);

// Not OK while nothing new may be stored: the coordinator drains, or its disk is full.
absl::Status Refusal(const State& state);

}  // namespace ringmaster::coordinator
