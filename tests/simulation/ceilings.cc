#include "tests/simulation/ceilings.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/lifecycle.h"

namespace ringmaster::simulation {

std::vector<std::string> CheckCeilings(const coordinator::Core& core, const Queues& queues) {
  std::vector<std::string> wrong;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    if (coordinator::IsTerminal(job->status().state())) continue;
    const auto queue = queues.find(job->spec().queue());
    if (queue == queues.end()) {
      wrong.push_back(absl::StrCat(job->name(), " is of no queue: ", job->spec().queue()));
    } else if (job->spec().priority() > queue->second.max_priority()) {
      wrong.push_back(absl::StrFormat("%s has priority %d, its queue's is at most %d", job->name(),
                                      job->spec().priority(), queue->second.max_priority()));
    }
  }
  return wrong;
}

}  // namespace ringmaster::simulation
