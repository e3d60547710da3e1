#pragma once

#include <map>
#include <set>
#include <string>

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// The order in which jobs that wait are looked at: by priority, and by age within a queue. Among
// queues whose first ones have the same priority, the next is the one that holds the fewest workers
// for its weight (weighted fair sharing); of equal ones, that whose job is the older. What jobs
// before are to get counts as held, so that a queue whose job waits for workers does not come again
// before others had their turn. Thread-compatible.
class FairOrder {
 public:
  // `recovering`: rings that wait for workers, which are looked at in their places among the jobs
  // of `state` that wait. `state` outlives it.
  FairOrder(const State& state, const JobQueue& recovering);

  // As shares are now; null when there are no more. Between two calls, only the share of the queue
  // of the job that the first returned may change, and that job alone leave the queue.
  Job* Next();

 private:
  // The jobs of a queue.
  struct Line {
    const ClusterQueue* queue = nullptr;
    JobQueue recovering;
    JobQueue::const_iterator next_recovering;
    JobQueue::const_iterator next_waiting;

    bool empty() const {
      return next_recovering == recovering.end() && next_waiting == queue->waiting.end();
    }
    // REQUIRES: not empty.
    JobQueue::const_iterator& first();
  };
  struct Head {
    QueueKey place;
    int64_t workers = 0;
    int64_t weight = 1;
    Line* line = nullptr;

    bool operator<(const Head& other) const;
  };
  void Insert(Line& line);

  // By queue.
  std::map<std::string, Line> lines_;
  std::set<Head> heads_;
  Line* last_ = nullptr;
};

}  // namespace ringmaster::coordinator
