#include "tests/simulation/quota_reasons.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_format.h"

namespace ringmaster::simulation {

using S = v1::TrainingJobStatus;

std::vector<std::string> CheckQuotaReasons(const coordinator::Core& core, const Queues& queues) {
  std::map<std::string, int> used;
  std::vector<const v1::TrainingJob*> waiting;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    used[job->spec().queue()] += HeldBy(*job);
    if (job->status().state() == S::QUEUED) waiting.push_back(job);
  }
  std::sort(waiting.begin(), waiting.end(), [](const auto* one, const auto* other) {
    return one->status().pending_reason().queue_position() <
           other->status().pending_reason().queue_position();
  });
  std::vector<std::string> wrong;
  for (const v1::TrainingJob* job : waiting) {
    const std::string& code = job->status().pending_reason().code();
    // For whom too few workers are there, no quota is kept.
    if (code == "NOT_ENOUGH_WORKERS" || code == "WORKERS_UNSUITABLE") continue;
    const int quota = queues.at(job->spec().queue()).max_workers();
    int& of_queue = used[job->spec().queue()];
    const bool too_much = quota > 0 && of_queue + WorldOf(*job) > quota;
    if (too_much != (code == "WAITING_FOR_QUOTA")) {
      wrong.push_back(absl::StrFormat(
          "%s says %s: it needs %d workers, queue %s uses %d of %d for those before", job->name(),
          code, WorldOf(*job), job->spec().queue(), of_queue, quota));
    }
    if (IsToHaveSome(*job, queues.at(job->spec().queue()))) of_queue += WorldOf(*job);
  }
  return wrong;
}

}  // namespace ringmaster::simulation
