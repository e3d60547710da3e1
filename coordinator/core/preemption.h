#pragma once

#include <string>
#include <vector>

#include "coordinator/core/state.h"

// Running jobs are stopped, as for a pause, so that a waiting one of a higher priority gets their
// workers. They go back to the queue, and on from the checkpoint they stopped with.
namespace ringmaster::coordinator {

// Workers that are alike, and would do for a job.
struct Kind {
  std::vector<Worker*> idle;
  // Members of rings, also where their stream is broken, and idle ones whose stream is.
  std::vector<Worker*> busy;
};

// `job`, of the queue or a recovery, waits for `workers` of one of these kinds, of which there are
// enough, most of the first. It counts on those that come free anyway, and stops what has to be
// stopped for the others: jobs of strictly lower priorities, the lowest and then the youngest
// first, and no more than it takes; of the kind where that is least. When all that may be stopped
// is not enough, nothing is; nor before workers had time to come back, after a start or after the
// ring of `job` broke. Returns the idle workers to keep for it. Called in the order of the queue,
// recoveries among the others.
std::vector<Worker*> MakeRoom(State& state, const Job& job, int workers,
                              const std::vector<Kind>& kinds);

// The job that the workers of `job` are for when it has stopped; null when there is none, as it
// does not wait any more, or has no higher priority.
const Job* PreemptorOf(const State& state, const Job& job);

// Whether the ring of an idle worker was stopped for a job that still waits: for another one than
// `job`; for one of a higher priority.
bool IsFreedForOther(const State& state, const Worker& worker, const Job& job);
bool IsFreedForHigher(const State& state, const Worker& worker, const Job& job);

// For whom `job` is to stop, in words; empty when for nobody.
std::string PreemptionOf(const State& state, const Job& job);

}  // namespace ringmaster::coordinator
