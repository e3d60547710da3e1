#include "tests/simulation/queue_order.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_format.h"
#include "coordinator/core/times.h"

namespace ringmaster::simulation {
namespace {

using coordinator::FromProto;
using S = v1::TrainingJobStatus;

// Of jobs that came at the same instant any may be first, and of those of one priority in two
// queues the one whose queue holds less: see FairShares.
bool IsBefore(const v1::TrainingJob* one, const v1::TrainingJob* other) {
  if (one->spec().queue() != other->spec().queue()) {
    return one->spec().priority() > other->spec().priority();
  }
  return std::tuple(-one->spec().priority(), FromProto(one->create_time())) <
         std::tuple(-other->spec().priority(), FromProto(other->create_time()));
}

int PositionOf(const v1::TrainingJob& job) {
  return job.status().pending_reason().queue_position();
}

// Enough workers are there that would do: those that are idle are kept for it. A worker that fails
// a job is passed over, so that only one which has never had a ring can have none to pass over.
bool HasWorkersKept(const v1::TrainingJob& job) {
  return job.status().pending_reason().code() == "WORKERS_BUSY" && job.status().generation() == 0;
}

}  // namespace

std::vector<std::string> QueueOrder::Check(const coordinator::Core& core) {
  std::vector<std::string> wrong;
  std::vector<const v1::TrainingJob*> queue, placed;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    if (job->status().state() == S::QUEUED) {
      queue.push_back(job);
      elsewhere_.erase(job->uid());
    } else if (elsewhere_.insert(job->uid()).second && job->status().state() == S::STARTING) {
      placed.push_back(job);
    }
  }
  std::sort(queue.begin(), queue.end(), [](const auto* one, const auto* other) {
    return PositionOf(*one) < PositionOf(*other);
  });
  for (size_t i = 0; i < queue.size(); ++i) {
    if (PositionOf(*queue[i]) != static_cast<int>(i) + 1) {
      wrong.push_back(absl::StrFormat("%s: at position %d of the queue, not %d", queue[i]->name(),
                                      PositionOf(*queue[i]), i + 1));
    }
    for (size_t j = 0; j < i; ++j) {
      if (!IsBefore(queue[i], queue[j])) continue;
      wrong.push_back(absl::StrFormat("%s of priority %d waits behind %s of %d", queue[i]->name(),
                                      queue[i]->spec().priority(), queue[j]->name(),
                                      queue[j]->spec().priority()));
    }
    for (const v1::TrainingJob* job : placed) {
      if (IsBefore(queue[i], job) && HasWorkersKept(*queue[i])) {
        wrong.push_back(absl::StrFormat("%s was placed before %s", job->name(), queue[i]->name()));
      }
    }
  }
  return wrong;
}

}  // namespace ringmaster::simulation
