#include "tests/simulation/preemption.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "coordinator/core/times.h"

namespace ringmaster::simulation {

using S = v1::TrainingJobStatus;

std::vector<std::string> Preemption::Check(const coordinator::Core& core) {
  std::vector<std::string> wrong;
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    // Of the change to the state that it has.
    const absl::Time changed = coordinator::FromProto(job->update_time());
    const auto current = job->status().state();
    if (current == S::RUNNING) run_since_.emplace(job->uid(), changed);
    // It may have been in the queue between two looks.
    if (current == S::QUEUED || current == S::PAUSED || current == S::STARTING) {
      run_since_.erase(job->uid());
    }
    if (current != S::PAUSING) {
      pausing_.erase(job->uid());
      continue;
    }
    const std::string& reason = job->status().state_reason();
    if (!pausing_.insert(job->uid()).second || !absl::StrContains(reason, "takes its place")) {
      continue;
    }
    ++count_;
    if (!on_) wrong.push_back(absl::StrCat(job->name(), " is stopped for another one"));
    const auto since = run_since_.find(job->uid());
    const bool seen = since != run_since_.end();
    // Without a time it may be told to stop by what let it run.
    if (min_runtime_ > absl::ZeroDuration() && (!seen || changed - since->second < min_runtime_)) {
      wrong.push_back(absl::StrCat(job->name(), " is stopped too soon"));
    }
    const std::vector<std::string> words = absl::StrSplit(reason, ' ');
    const v1::TrainingJob* preemptor = core.FindJob(words.front());
    const bool waits = preemptor != nullptr && (preemptor->status().state() == S::QUEUED ||
                                                preemptor->status().state() == S::RECOVERING);
    // A quota is made by jobs of its own queue alone.
    if (waits && preemptor->status().pending_reason().code() == "WAITING_FOR_QUOTA" &&
        preemptor->spec().queue() != job->spec().queue()) {
      wrong.push_back(absl::StrCat(job->name(), " of another queue stops, as ", reason));
    }
    if (!waits || preemptor->spec().priority() <= job->spec().priority()) {
      wrong.push_back(absl::StrFormat("%s of priority %d stops, as %s", job->name(),
                                      job->spec().priority(), reason));
    }
  }
  return wrong;
}

}  // namespace ringmaster::simulation
