#include "tests/simulation/held_workers.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace ringmaster::simulation {

std::vector<std::string> HeldWorkers::Check(const coordinator::Core& core, const Queues& queues) {
  std::map<std::string, int> held;
  std::map<std::string, std::string> placed;
  std::set<std::string> holders;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    if (HeldBy(*job) == 0) continue;
    held[job->spec().queue()] += HeldBy(*job);
    holders.insert(job->uid());
    if (holders_.count(job->uid()) == 0) placed[job->spec().queue()] = job->name();
  }
  holders_ = std::move(holders);
  std::vector<std::string> wrong;
  for (const auto& [queue, job] : placed) {
    const int quota = queues.at(queue).max_workers();
    if (quota > 0 && held[queue] > quota) {
      wrong.push_back(absl::StrFormat("%s was placed: queue %s holds %d workers of %d", job, queue,
                                      held[queue], quota));
    }
  }
  return wrong;
}

}  // namespace ringmaster::simulation
