#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// The order in which jobs that wait are looked at: by priority, and by age within a queue. Among
// queues whose first ones have the same priority, the next is the one that holds the fewest workers
// for its weight (weighted fair sharing); of equal ones, that whose job is the older. What jobs
// before are to get counts as held, so that a queue whose job waits for workers does not come again
// before others had their turn. Thread-compatible.
class FairOrder {
 public:
  // `state` and `waiting` outlive it.
  FairOrder(const State& state, const JobQueue& waiting);

  // As shares are now; null when there are no more. Between two calls, only the share of the queue
  // of the job that the first returned may change.
  Job* Next();

 private:
  // The jobs of a queue of one priority.
  struct Line {
    const ClusterQueue* queue = nullptr;
    std::vector<Job*> jobs;
    size_t next = 0;
  };
  struct Head {
    int64_t workers = 0;
    int64_t weight = 1;
    QueueKey place;
    Line* line = nullptr;

    bool operator<(const Head& other) const;
  };
  // Those of the highest priority that is left.
  void TakePriority();
  void Insert(Line& line);

  const State& state_;
  const JobQueue& waiting_;
  JobQueue::const_iterator rest_;
  // By queue.
  std::map<std::string, Line> lines_;
  std::set<Head> heads_;
  Line* last_ = nullptr;
};

}  // namespace ringmaster::coordinator
