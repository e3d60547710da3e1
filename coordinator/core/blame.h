#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/state.h"

// Whose fault is it, the job's or the worker's? A worker that joins others who have run the job,
// and fails ere their first step together, lacks something that they have: a mount, memory, the
// same files. The job goes on without it and passes it over for a while. Where all are new nobody
// is blamed: then it may as well be the job.
namespace ringmaster::coordinator {

// The ring has done a step: its members are proven.
void NoteProven(Job& job);

// The members that a fault speaks against: none of them when it speaks against one who has left.
// Nullopt when it speaks against the job, or nobody.
std::optional<std::vector<int>> Blamed(State& state, const Job& job, int rank,
                                       const v1::Fault& fault);
// Lets a member go and marks it unfit for this job. Returns its name. REQUIRES: the rank has one.
std::string PassOver(State& state, Job& job, int rank, const std::string& reason);

// Why `worker` is not chosen for the job at present; empty when it may be.
std::string UnfitReason(const State& state, const Job& job, const Worker& worker);

// Some time is over: forgives whom it can, and comes again for the others.
void OnForgiveTimer(State& state, Job& job);

}  // namespace ringmaster::coordinator
