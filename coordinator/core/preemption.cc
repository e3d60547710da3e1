#include "coordinator/core/preemption.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_format.h"
#include "coordinator/core/pause.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;

// Until when a job stops nobody, as workers are about to come back: after a start of the
// coordinator, and where a ring has just lost some, which are mostly restarted at once.
absl::Time WaitsUntil(const State& state, const Job& job) {
  if (job.status().state() != S::RECOVERING) return state.settled;
  return std::max(state.settled, job.phase_end + state.options.adoption_window);
}

// The job with this uid when it waits and has a higher priority than `job`, else null.
const Job* WaitingAbove(const State& state, const std::string& uid, const Job& job) {
  const auto found = state.jobs_by_uid.find(uid);
  if (found == state.jobs_by_uid.end()) return nullptr;
  const Job* other = found->second;
  const bool waits = other->status().state() == S::QUEUED ||
                     (other->status().state() == S::RECOVERING && other->waiting);
  return waits && other->spec().priority() > job.spec().priority() ? other : nullptr;
}

// A ring that broke while it stopped does so when it stands again; one that waits for a member may
// wait for long.
bool ComesFree(const State& state, const Job& job) {
  const auto current = job.status().state();
  return current == S::PAUSING || current == S::CANCELLING ||
         (current != S::RUNNING && !job.waiting && PreemptorOf(state, job) != nullptr);
}

// From when on a ring that runs may be stopped: a job gets something done each time it is placed,
// however often somebody of a higher priority loses a worker and finds it again.
absl::Time HadItsTime(const State& state, const Job& job) {
  return job.run_since + state.options.preemption_min_runtime;
}

bool MayBeStopped(const Job& job, const Job& by) {
  return job.status().state() == S::RUNNING && job.spec().priority() < by.spec().priority() &&
         job.failed_stops == 0;
}

struct Victim {
  Job* job;
  std::vector<Worker*> workers;
};

// Empty when all that may be stopped is not enough.
std::vector<Victim> ChooseVictims(const std::map<QueueKey, Victim>& candidates, size_t missing) {
  std::vector<Victim> victims;
  size_t found = 0;
  for (auto it = candidates.rbegin(); it != candidates.rend() && found < missing; ++it) {
    victims.push_back(it->second);
    found += it->second.workers.size();
  }
  if (found < missing) return {};
  // Small ones may have been taken before one that is enough without them.
  for (size_t i = victims.size(); i-- > 0;) {
    const size_t others = found - victims[i].workers.size();
    if (others < missing) continue;
    found = others;
    victims.erase(victims.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return victims;
}

}  // namespace

void MakeRoom(State& state, const Job& job, int missing, const std::vector<Worker*>& busy) {
  // A ring that has finished would wait until there is room for its checkpoint.
  if (!state.options.preemption || state.store_full) return;
  // Nor can any job behind this one stop another.
  if (state.running.empty() ||
      state.running.rbegin()->second->spec().priority() >= job.spec().priority()) {
    return;
  }
  std::map<QueueKey, Victim> candidates;
  // When there are more of them.
  absl::Time next = absl::InfiniteFuture();
  // What was stopped for this job comes first: others may have been stopped for jobs behind it.
  for (const bool own : {true, false}) {
    for (Worker* worker : busy) {
      if (missing == 0) return;
      if (worker->claimed) continue;
      Job* holder = state.FindJob(worker->job);
      if (own && (holder == nullptr || holder->preempted_by != job.uid())) continue;
      // It is away, and expected back until its lease is over.
      if (holder == nullptr || ComesFree(state, *holder)) {
        worker->claimed = true;
        --missing;
      } else if (!own && MayBeStopped(*holder, job)) {
        if (const absl::Time when = HadItsTime(state, *holder); when > state.now) {
          next = std::min(next, when);
          continue;
        }
        Victim& victim = candidates[holder->queue_key()];
        victim.job = holder;
        victim.workers.push_back(worker);
      }
    }
  }
  if (missing == 0) return;
  if (const absl::Time until = WaitsUntil(state, job); state.now < until) {
    state.timers.Set(TimerKind::kMakeRoom, job.name(), until);
    return;
  }
  const std::vector<Victim> victims = ChooseVictims(candidates, static_cast<size_t>(missing));
  if (victims.empty()) {
    if (next < absl::InfiniteFuture()) state.timers.Set(TimerKind::kMakeRoom, job.name(), next);
    // Whatever else becomes free is kept for it: nobody behind it would get what they stopped.
    for (Worker* worker : busy) worker->claimed = true;
    return;
  }
  for (const Victim& victim : victims) {
    victim.job->preempted_by = job.uid();
    StopIfAsked(state, *victim.job);
    for (Worker* worker : victim.workers) {
      if (missing-- > 0) worker->claimed = true;
    }
  }
}

const Job* PreemptorOf(const State& state, const Job& job) {
  return WaitingAbove(state, job.preempted_by, job);
}

bool IsFreedForHigher(const State& state, const Worker& worker, const Job& job) {
  return WaitingAbove(state, worker.freed_for, job) != nullptr;
}

std::string PreemptionOf(const State& state, const Job& job) {
  const Job* preemptor = PreemptorOf(state, job);
  if (preemptor == nullptr || state.store_full) return "";
  return absl::StrFormat("%s of priority %d takes its place", preemptor->name(),
                         preemptor->spec().priority());
}

}  // namespace ringmaster::coordinator
