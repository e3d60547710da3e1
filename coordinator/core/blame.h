#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/state.h"

// Whose fault is it, the job's or a worker's? A worker that has no part in the job's steps yet, and
// fails ere its ring's first, may lack what others have: a mount, memory, the same files. While
// somebody is there who has run the job, that is the worker's fault: the job goes on without it and
// passes it over for a while. Where nobody is, the second word of a failing that would come again
// is the job's fault, though it be of the same failing.
//
// What two ranks find unlike (their files, their addresses) both tell, each accusing the other: it
// is the fault of whom those that have run the job do not agree with, whoever is heard first.
namespace ringmaster::coordinator {

// The ring has done a step: its members are proven. False when they were so already; the record
// has changed otherwise.
bool NoteProven(Job& job);

// The members that a fault speaks against: none of them when it speaks against one who has left.
// Nullopt when it speaks against the job, or nobody.
std::optional<std::vector<int>> Blamed(State& state, const Job& job, int rank,
                                       const v1::Fault& fault);
// Lets a member go and marks it unfit for this job: for minutes when its failing is `lasting`, else
// for a second, and twice as long each time. Returns its name. REQUIRES: the rank has a member.
std::string PassOver(State& state, Job& job, int rank, bool lasting, const std::string& reason);

// Why `worker` is not chosen for the job at present; empty when it may be.
std::string UnfitReason(const State& state, const Job& job, const Worker& worker);

// Not long ago, though it may be chosen again.
bool FailedBefore(const Job& job, const Worker& worker);

// A member was passed over for as long as ever. When what may pass makes it fail again, that may be
// the job's fault as well as its own.
bool HasNotPassed(State& state, const Job& job, int rank);

// Some time is over: forgives whom it can, and comes again for the others.
void OnForgiveTimer(State& state, Job& job);

}  // namespace ringmaster::coordinator
