#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ringmaster/v1/job.pb.h"
#include "ringmaster/v1/queue_service.pb.h"

// What the invariants of queues have in common.
namespace ringmaster::simulation {

using Rows = std::map<std::pair<int, std::string>, std::string>;
// By id.
using Queues = std::map<std::string, v1::Queue>;

// As they are stored; "default" is there, too, where nobody has edited it.
Queues QueuesIn(const Rows& rows);

// How many workers the job is to have when it has been placed, and how many it has or is to have
// again.
int WorldOf(const v1::TrainingJob& job);
int HeldBy(const v1::TrainingJob& job);

// Whether the quota of its queue is kept for a job that waits, and workers: not where too few are
// there, or the quota is too small.
bool IsToHaveSome(const v1::TrainingJob& job, const v1::Queue& queue);

}  // namespace ringmaster::simulation
