#include "tests/simulation/fair_shares.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"

namespace ringmaster::simulation {
namespace {

using S = v1::TrainingJobStatus;

int PositionOf(const v1::TrainingJob& job) {
  return job.status().pending_reason().queue_position();
}

// Workers that are idle are kept for it. Where it has had a ring, it may have some to pass over.
bool HasWorkersKept(const v1::TrainingJob& job) {
  return job.status().pending_reason().code() == "WORKERS_BUSY" && job.status().generation() == 0;
}

}  // namespace

std::vector<std::string> FairShares::Check(const coordinator::Core& core, const Queues& queues) {
  std::vector<const v1::TrainingJob*> waiting, placed;
  // At least what each held when the first job was placed, and at most what it did at the end.
  std::map<std::string, int> before, after;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    const std::string& queue = job->spec().queue();
    after[queue] += HeldBy(*job);
    before[queue] += HeldBy(*job);
    if (job->status().state() == S::QUEUED) {
      waiting.push_back(job);
      elsewhere_.erase(job->uid());
    } else if (elsewhere_.insert(job->uid()).second && HeldBy(*job) > 0) {
      before[queue] -= HeldBy(*job);
      placed.push_back(job);
    }
  }
  std::sort(waiting.begin(), waiting.end(), [](const auto* one, const auto* other) {
    return PositionOf(*one) < PositionOf(*other);
  });
  std::vector<std::string> wrong;
  for (const v1::TrainingJob* job : waiting) {
    const std::string& queue = job->spec().queue();
    for (const v1::TrainingJob* other : placed) {
      const std::string& others = other->spec().queue();
      if (others == queue || other->spec().priority() != job->spec().priority()) continue;
      const int64_t share = int64_t{after[queue]} * queues.at(others).weight();
      if (HasWorkersKept(*job) && share < int64_t{before[others]} * queues.at(queue).weight()) {
        wrong.push_back(absl::StrFormat(
            "%s of queue %s, which holds %d, waits; %s of %s, which "
            "held %d, was placed",
            job->name(), queue, after[queue], other->name(), others, before[others]));
      }
    }
    // What is kept for it counts for those behind.
    if (IsToHaveSome(*job, queues.at(queue))) after[queue] += WorldOf(*job);
  }
  return wrong;
}

}  // namespace ringmaster::simulation
