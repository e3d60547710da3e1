#include "coordinator/core/preemption.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/quota.h"
#include "coordinator/core/suitability.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;

// A ring that has not stopped for this long is counted on no more: its checkpoint may hang.
constexpr absl::Duration kStopsWithin = absl::Minutes(10);

// Until when a job stops nobody, as workers are about to come back: after a start of the
// coordinator, and where a ring has just lost some, which are mostly restarted at once.
absl::Time WaitsUntil(const State& state, const Job& job) {
  if (job.status().state() != S::RECOVERING) return state.settled;
  return std::max(state.settled, job.phase_end + state.options.adoption_window);
}

// Null when the job with this uid does not wait for workers.
const Job* WaitingJob(const State& state, const std::string& uid) {
  const auto found = state.jobs_by_uid.find(uid);
  if (found == state.jobs_by_uid.end()) return nullptr;
  const Job* job = found->second;
  const bool recovers = job->status().state() == S::RECOVERING && job->waiting;
  return recovers || job->status().state() == S::QUEUED ? job : nullptr;
}

const Job* WaitingAbove(const State& state, const std::string& uid, const Job& job) {
  const Job* other = WaitingJob(state, uid);
  return other != nullptr && other->spec().priority() > job.spec().priority() ? other : nullptr;
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
absl::Time MayBeStopped(const State& state, const Job& job) {
  // One that could not write a checkpoint goes on until it has. Where it writes none by itself,
  // only another stop can tell.
  const bool writes = job.spec().checkpoint().interval_steps() > 0;
  if (job.failed_stops > 0 && writes) return absl::InfiniteFuture();
  return std::max(job.run_since + state.options.preemption_min_runtime, job.stop_again);
}

void Add(Worker* worker, Job* job, Holding& holding) {
  holding.job = job;
  holding.workers.push_back(worker);
}

Holdings Sorted(State& state, const std::vector<Worker*>& busy) {
  Holdings holdings;
  for (Worker* worker : busy) {
    if (worker->claimed) continue;
    Job* job = state.FindJob(worker->job);
    if (job == nullptr) {
      // It is away, and expected back until its lease is over.
      Add(worker, job, holdings.freeing[{}]);
    } else if (ComesFree(state, *job)) {
      if (job->status().state() == S::PAUSING) {
        const absl::Time overdue = FromProto(job->record.job().update_time()) + kStopsWithin;
        if (overdue <= state.now) continue;
        holdings.overdue = std::min(holdings.overdue, overdue);
      }
      const Job* preemptor = PreemptorOf(state, *job);
      const std::string uid = preemptor == nullptr ? "" : preemptor->uid();
      Add(worker, job, holdings.freeing[{uid, job->queue_key()}]);
    } else if (job->status().state() == S::RUNNING) {
      const absl::Time when = MayBeStopped(state, *job);
      if (when <= state.now) {
        Add(worker, job, holdings.running[job->queue_key()]);
      } else {
        holdings.next = std::min(holdings.next, when);
      }
    }
  }
  return holdings;
}

// Forgets those that somebody counts on.
bool HasUnclaimed(Holding& holding) {
  std::erase_if(holding.workers, [](const Worker* worker) { return worker->claimed; });
  return !holding.workers.empty();
}

bool IsOfQueueOf(const Job& job, const Holding& holding) {
  return holding.job != nullptr && holding.job->spec().queue() == job.spec().queue();
}

enum class Whose { kAnybodys, kItsQueues };

// The lowest and then the youngest first, as many as it takes; empty when all are not enough.
std::vector<Holding> ChooseVictims(Holdings& holdings, const Job& job, Whose whose,
                                   size_t missing) {
  std::vector<Holding> victims;
  size_t found = 0;
  for (auto it = holdings.running.rbegin(); it != holdings.running.rend() && found < missing;
       ++it) {
    if (it->second.job->spec().priority() >= job.spec().priority()) return {};
    if (whose == Whose::kItsQueues && !IsOfQueueOf(job, it->second)) continue;
    if (!HasUnclaimed(it->second)) continue;
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

// How a job gets its workers of one kind.
struct Plan {
  bool enough = false;
  // Somebody was stopped for it there before.
  bool begun = false;
  // Idle ones to keep.
  std::vector<Worker*> kept;
  // Busy ones to count on.
  std::vector<Worker*> claimed;
  std::vector<Holding> victims;
};

bool IsBetter(const Plan& one, const Plan& other) {
  return std::tuple(!one.enough, one.victims.size(), !one.begun) <
         std::tuple(!other.enough, other.victims.size(), !other.begun);
}

void LookAgain(State& state, const Job& job, absl::Time when) {
  if (when < absl::InfiniteFuture()) state.timers.Set(TimerKind::kMakeRoom, job.name(), when);
}

// Whether an idle worker was freed for another job that waits, which could not do with what was
// stopped for `job` instead. Else the order of the queue decides.
bool IsNeededByOther(const State& state, const Worker& worker, const Job& job,
                     const std::vector<Worker*>& own) {
  if (!IsFreedForOther(state, worker, job)) return false;
  const Requirement needs = RequirementOf(WaitingJob(state, worker.freed_for)->record);
  return std::any_of(own.begin(), own.end(), [&](const Worker* stopped) {
    return !Misfit(needs, stopped->hardware).empty();
  });
}

// What was stopped for the job comes first, and what another one needs, last.
Plan PlanRoom(const State& state, const Job& job, int workers, const std::vector<Worker*>& idle,
              Holdings& holdings) {
  Plan plan;
  auto& freeing = holdings.freeing;
  std::vector<Worker*> own;
  for (auto it = freeing.lower_bound({job.uid(), kFirstInQueue});
       it != freeing.end() && it->first.first == job.uid(); ++it) {
    own.insert(own.end(), it->second.workers.begin(), it->second.workers.end());
  }
  plan.begun = !own.empty();
  std::vector<Worker*> needed_by_others;
  for (Worker* worker : idle) {
    plan.begun = plan.begun || worker->freed_for == job.uid();
    const bool needed = IsNeededByOther(state, *worker, job, own);
    (needed ? needed_by_others : plan.kept).push_back(worker);
  }
  int missing = workers - static_cast<int>(plan.kept.size());
  const auto take = [&missing](const std::vector<Worker*>& from, std::vector<Worker*>& to) {
    for (Worker* worker : from) {
      if (missing > 0 && !worker->claimed) to.push_back(worker), --missing;
    }
  };
  take(own, plan.claimed);
  for (auto it = freeing.begin(); it != freeing.end() && missing > 0;) {
    if (!HasUnclaimed(it->second)) {
      it = freeing.erase(it);
      continue;
    }
    if (it->first.first != job.uid()) take(it->second.workers, plan.claimed);
    ++it;
  }
  take(needed_by_others, plan.kept);
  if (missing > 0) {
    plan.victims = ChooseVictims(holdings, job, Whose::kAnybodys, static_cast<size_t>(missing));
  }
  for (const Holding& victim : plan.victims) take(victim.workers, plan.claimed);
  plan.enough = missing <= 0;
  return plan;
}

// What its own queue's jobs have, or free.
Plan PlanQuota(const Job& job, int missing, Holdings& holdings) {
  Plan plan;
  const auto take = [&](const Holding& holding) {
    for (Worker* worker : holding.workers) {
      if (missing <= 0) break;
      if (worker->claimed) continue;
      plan.claimed.push_back(worker);
      --missing;
    }
  };
  for (auto& [whom, holding] : holdings.freeing) {
    if (missing <= 0) break;
    if (!IsOfQueueOf(job, holding) || !HasUnclaimed(holding)) continue;
    plan.begun = plan.begun || whom.first == job.uid();
    take(holding);
  }
  if (missing > 0) {
    plan.victims = ChooseVictims(holdings, job, Whose::kItsQueues, static_cast<size_t>(missing));
  }
  for (const Holding& victim : plan.victims) take(victim);
  plan.enough = missing <= 0;
  return plan;
}

}  // namespace

void Preemption::Refresh(Kind& kind) const {
  if (!kind.holdings.has_value()) {
    kind.holdings = Sorted(state_, kind.busy);
    kind.stops = stopped_.size();
  }
  for (; kind.stops < stopped_.size(); ++kind.stops) {
    const Job& job = *stopped_[kind.stops];
    const auto found = kind.holdings->running.find(job.queue_key());
    if (found == kind.holdings->running.end()) continue;
    kind.holdings->freeing[{job.preempted_by, job.queue_key()}] = std::move(found->second);
    kind.holdings->running.erase(found);
  }
}

std::vector<Worker*> Preemption::MakeRoom(const Job& job, int workers, std::span<Kind> kinds) {
  // Of a recovery there may be none.
  if (kinds.empty()) return {};
  if (!state_.options.preemption) return kinds.front().idle;
  std::vector<Plan> plans;
  absl::Time next = absl::InfiniteFuture();
  for (Kind& kind : kinds) {
    Refresh(kind);
    next = std::min(next, kind.holdings->next);
    plans.push_back(PlanRoom(state_, job, workers, kind.idle, *kind.holdings));
  }
  const auto plan = std::min_element(plans.begin(), plans.end(), IsBetter);
  Kind& kind = kinds[static_cast<size_t>(plan - plans.begin())];
  if (!plan->enough) {
    // Whatever else becomes free is kept for it: nobody behind it would get what they stopped.
    for (Worker* worker : kind.busy) worker->claimed = true;
    kind.busy.clear();
    kind.holdings = Holdings();
    LookAgain(state_, job, next);
    return kind.idle;
  }
  for (Worker* worker : plan->claimed) worker->claimed = true;
  LookAgain(state_, job, kind.holdings->overdue);
  Stop(job, plan->victims);
  return plan->kept;
}

void Preemption::Stop(const Job& job, const std::vector<Holding>& victims) {
  // A ring that has finished would wait until there is room for its checkpoint.
  if (victims.empty() || state_.store_full) return;
  if (const absl::Time until = WaitsUntil(state_, job); state_.now < until) {
    return LookAgain(state_, job, until);
  }
  for (const Holding& victim : victims) {
    victim.job->preempted_by = job.uid();
    StopIfAsked(state_, *victim.job);
    stopped_.push_back(victim.job);
  }
}

bool Preemption::MayMakeQuota(const Job& job) const {
  return state_.options.preemption && !state_.queues.at(job.spec().queue()).has_no_victims;
}

void Preemption::MakeQuota(const Job& job, int workers, int left,
                           const std::map<std::string, int>& idle, std::span<Kind> kinds) {
  std::vector<Plan> plans;
  absl::Time next = absl::InfiniteFuture();
  for (Kind& kind : kinds) {
    Refresh(kind);
    next = std::min(next, kind.holdings->next);
    const auto idle_ones = idle.find(kind.name);
    const int others = std::min(left, idle_ones == idle.end() ? 0 : idle_ones->second);
    plans.push_back(PlanQuota(job, workers - others, *kind.holdings));
  }
  const auto plan = std::min_element(plans.begin(), plans.end(), IsBetter);
  if (plan == plans.end() || !plan->enough) {
    state_.queues.at(job.spec().queue()).has_no_victims = true;
    return LookAgain(state_, job, next);
  }
  for (Worker* worker : plan->claimed) worker->claimed = true;
  LookAgain(state_, job, kinds[static_cast<size_t>(plan - plans.begin())].holdings->overdue);
  Stop(job, plan->victims);
}

const Job* PreemptorOf(const State& state, const Job& job) {
  const Job* other = WaitingAbove(state, job.preempted_by, job);
  // A quota that was lowered since is what it waits for now: another queue's workers do not help.
  const bool in_vain = other != nullptr && other->status().state() == S::QUEUED &&
                       other->status().pending_reason().code() == kWaitingForQuota &&
                       other->spec().queue() != job.spec().queue();
  return in_vain ? nullptr : other;
}

bool IsFreedForOther(const State& state, const Worker& worker, const Job& job) {
  const Job* other = WaitingJob(state, worker.freed_for);
  return other != nullptr && other != &job;
}

bool IsFreedForHigher(const State& state, const Worker& worker, const Job& job) {
  const Job* other = WaitingAbove(state, worker.freed_for, job);
  // One of the queue for which too few are there holds up nobody.
  return other != nullptr && (other->status().state() != S::QUEUED ||
                              other->status().pending_reason().code() == kWorkersBusy);
}

std::string PreemptionOf(const State& state, const Job& job) {
  const Job* preemptor = PreemptorOf(state, job);
  if (preemptor == nullptr || state.store_full) return "";
  return absl::StrFormat("%s of priority %d %s", preemptor->name(), preemptor->spec().priority(),
                         kTakesItsPlace);
}

}  // namespace ringmaster::coordinator
