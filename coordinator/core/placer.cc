#include "coordinator/core/placer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/cordon.h"
#include "coordinator/core/episodes.h"
#include "coordinator/core/fair_order.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/preemption.h"
#include "coordinator/core/quota.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/ring_order.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/suitability.h"

namespace ringmaster::coordinator {
namespace {

Place PlaceOf(const Worker& worker, int previous_rank) {
  return {.worker = worker.name,
          .zone = worker.hardware.zone(),
          .host = worker.hardware.host(),
          .link_group = worker.hardware.link_group(),
          .previous_rank = previous_rank,
          .since = worker.register_time};
}

// What a job asks for, less the workers that it passes over.
Requirement WishesOf(const State& state, const Job& job) {
  Requirement requirement = RequirementOf(job.record);
  for (const auto& [name, unfit] : job.unfit) {
    const auto worker = state.workers.find(name);
    if (worker != state.workers.end() && !UnfitReason(state, job, worker->second).empty()) {
      requirement.unfit.insert(name);
    }
  }
  return requirement;
}

// ", its name", or nothing.
std::string GpuOf(const Worker& worker) {
  return worker.hardware.device() == v1::CUDA ? absl::StrCat(", ", worker.hardware.device_name())
                                              : "";
}

// The kind that most are of.
std::string MostOf(const std::map<std::string, std::vector<Worker*>>& by_kind) {
  const auto most = std::max_element(
      by_kind.begin(), by_kind.end(),
      [](const auto& one, const auto& other) { return one.second.size() < other.second.size(); });
  return most == by_kind.end() ? "" : most->first;
}

// It may be idle later.
bool IsMemberOrAway(const Worker& worker) {
  return !worker.job.empty() || (!worker.attached() && !worker.unresponsive);
}

struct Choice {
  // Empty when the job must wait.
  std::vector<Worker*> members;
  // Those of which there are enough, most of the first.
  std::vector<Kind> kinds;
  v1::PendingReason reason;
};

// One run over the waiting jobs.
class Placing {
 public:
  explicit Placing(State& state) : state_(state), preemption_(state) {
    for (auto& [name, worker] : state.workers) {
      if (worker.attached()) ++attached_;
      const bool idle = worker.attached() && worker.job.empty() && !worker.unresponsive;
      if (idle && !state.IsCordoned(worker)) idle_.push_back(&worker);
    }
  }
  void KeepOnly(const std::vector<std::string>& names) {
    std::erase_if(idle_, [&](const Worker* worker) {
      return !std::binary_search(names.begin(), names.end(), worker->name);
    });
  }

  void Recover(Job& job);
  // For a recovery that found too few.
  void MakeRoomFor(const Job& job);
  // `position`: where in the queue it is when it must go on waiting. Whether it must.
  bool Queue(Job& job, int position);
  // Nobody could be placed any more, nor have others stopped.
  bool IsOver() const { return idle_.empty() && !state_.options.preemption; }
  // Whether anybody was.
  bool placed() const { return placed_; }

  std::vector<std::string> IdleNames() const {
    std::vector<std::string> names;
    for (const Worker* worker : idle_) names.push_back(worker->name);
    return names;
  }

 private:
  // Why a worker will not do; empty when it will.
  std::string MisfitOf(const Requirement& requirement, const Worker& worker) const;
  // Those that wait for work and would do.
  int CordonedFor(const Requirement& requirement) const;
  // By kind, without the idle ones.
  std::vector<Kind>& BusyFor(const Requirement& requirement);
  bool IsHeldByQuota(Job& job, const Requirement& requirement, int position);
  Choice Choose(const Requirement& requirement) const;
  v1::PendingReason WhyNot(const Requirement& requirement, int fitting, int away, int idle) const;
  std::vector<Worker*> WorkersAt(const std::vector<Place>& places);
  void Take(const std::vector<Worker*>& workers);
  // For a job that waits for more.
  void Keep(const std::vector<Worker*>& workers);
  void Begin(Job& job, const std::vector<Place>& places);
  void SetReason(Job& job, v1::PendingReason reason);

  State& state_;
  Preemption preemption_;
  int attached_ = 0;
  bool placed_ = false;
  std::vector<Worker*> idle_;
  struct Lack {
    int missing = 0;
    // Empty: any.
    std::string kind;
  };
  // By uid: of recoveries.
  std::map<std::string, Lack> lacking_;
  std::map<Requirement, std::vector<Kind>> busy_;
  // What was found for a requirement since the idle workers last changed.
  std::map<Requirement, Choice> known_;
};

std::string Placing::MisfitOf(const Requirement& requirement, const Worker& worker) const {
  if (requirement.unfit.count(worker.name) > 0) return "a failed attempt at this job";
  const std::string misfit = Misfit(requirement, worker.hardware);
  return misfit.empty() && state_.IsCordoned(worker) ? "a cordon" : misfit;
}

int Placing::CordonedFor(const Requirement& requirement) const {
  return static_cast<int>(
      std::count_if(state_.workers.begin(), state_.workers.end(), [&](const auto& entry) {
        const Worker& worker = entry.second;
        return worker.attached() && worker.job.empty() && state_.IsCordoned(worker) &&
               Misfit(requirement, worker.hardware).empty();
      }));
}

void Placing::Take(const std::vector<Worker*>& workers) {
  if (workers.empty()) return;
  std::erase_if(idle_, [&](Worker* worker) {
    return std::find(workers.begin(), workers.end(), worker) != workers.end();
  });
  known_.clear();
}

void Placing::Keep(const std::vector<Worker*>& workers) {
  if (!workers.empty()) state_.keeps_idle = true;
  Take(workers);
}

std::vector<Worker*> Placing::WorkersAt(const std::vector<Place>& places) {
  std::vector<Worker*> workers;
  for (const Place& place : places) workers.push_back(state_.FindWorker(place.worker));
  return workers;
}

void Placing::Begin(Job& job, const std::vector<Place>& places) {
  ++state_.counters.placement_attempts["PLACED"];
  placed_ = true;
  const std::vector<Worker*> members = WorkersAt(places);
  Take(members);
  BeginGeneration(state_, job, members);
}

void Placing::SetReason(Job& job, v1::PendingReason reason) {
  ++state_.counters.placement_attempts[reason.code()];
  v1::PendingReason* now = job.mutable_status()->mutable_pending_reason();
  // Numbers in a reason change with each job that is placed, as positions do.
  const bool moved =
      reason.queue_position() <= state_.options.shown_positions &&
      (now->queue_position() != reason.queue_position() || now->message() != reason.message());
  if (moved || now->code() != reason.code()) {
    Show(state_, job);
  }
  // What was freed for it may be for broken rings now.
  if (state_.options.preemption && now->code() == kWorkersBusy && reason.code() != kWorkersBusy) {
    state_.placement_due = true;
  }
  *now = std::move(reason);
}

void Placing::Recover(Job& job) {
  const Requirement requirement = WishesOf(state_, job);
  std::vector<Place> members;
  std::string kind;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state_.Member(job, rank);
    if (worker == nullptr || !worker->attached() || LeavesRing(state_, job, rank)) continue;
    members.push_back(PlaceOf(*worker, rank));
    kind = KindOf(worker->hardware, worker->version);
  }
  // A ring that broke while it stopped has to stand before its workers are free: for the same job.
  const auto is_for_higher = [&](const Worker& worker) {
    const bool for_same = !members.empty() && worker.freed_for == job.preempted_by;
    return !for_same && IsFreedForHigher(state_, worker, job);
  };
  std::map<std::string, std::vector<Worker*>> fitting;
  for (Worker* worker : idle_) {
    if (MisfitOf(requirement, *worker).empty() && !is_for_higher(*worker)) {
      fitting[KindOf(worker->hardware, worker->version)].push_back(worker);
    }
  }
  if (members.empty()) kind = MostOf(fitting);
  std::vector<Worker*> alike = std::move(fitting[kind]);
  fitting.erase(kind);
  const int wanted = requirement.workers - static_cast<int>(members.size());
  // Whoever failed at the job before is tried again when nobody else is there.
  const auto failed = std::stable_partition(alike.begin(), alike.end(), [&](const Worker* worker) {
    return !FailedBefore(job, *worker);
  });
  const size_t others = std::max<size_t>(failed - alike.begin(), std::max(wanted, 0));
  alike.resize(std::min(alike.size(), others));
  std::vector<Place> candidates;
  for (const Worker* worker : alike) candidates.push_back(PlaceOf(*worker, -1));
  if (wanted > static_cast<int>(candidates.size())) {
    lacking_[job.uid()] = {wanted - static_cast<int>(candidates.size()), kind};
    v1::PendingReason reason;
    reason.set_code("WAITING_FOR_REPLACEMENT");
    std::string message = absl::StrFormat("needs %d more of %d workers; %d suitable ones are idle",
                                          wanted, requirement.workers, candidates.size());
    for (const auto& [other, workers] : fitting) {
      absl::StrAppendFormat(&message, "; %d of another GPU model, transport or build (%s%s)",
                            workers.size(), workers.front()->version, GpuOf(*workers.front()));
    }
    if (const int cordoned = CordonedFor(requirement); cordoned > 0) {
      absl::StrAppend(&message, "; ", cordoned, " with a cordon");
    }
    for (const std::string& name : requirement.unfit) {
      absl::StrAppend(&message, "; passed over: ", job.unfit.at(name).reason);
    }
    reason.set_message(std::move(message));
    SetReason(job, std::move(reason));
    Keep(alike);
    return;
  }
  std::vector<Place> places = ChoosePlaces(candidates, members, wanted, requirement.ring_size);
  if (state_.now < job.retry_at) {
    v1::PendingReason reason;
    reason.set_code("PAUSE_BEFORE_RETRY");
    reason.set_message(absl::StrFormat("attempt %d to recover failed too; the next begins at %s",
                                       FailedAttempts(job),
                                       absl::FormatTime(job.retry_at, absl::UTCTimeZone())));
    SetReason(job, std::move(reason));
    Keep(WorkersAt(places));
    return;
  }
  places.insert(places.end(), members.begin(), members.end());
  Begin(job, OrderRings(std::move(places), requirement.ring_size));
}

std::vector<Kind>& Placing::BusyFor(const Requirement& requirement) {
  const auto [known, fresh] = busy_.try_emplace(requirement);
  if (!fresh) return known->second;
  std::map<std::string, Kind> kinds;
  for (auto& [name, worker] : state_.workers) {
    if (worker.lost || !IsMemberOrAway(worker) || !MisfitOf(requirement, worker).empty()) continue;
    kinds[KindOf(worker.hardware, worker.version)].busy.push_back(&worker);
  }
  for (auto& [name, kind] : kinds) {
    kind.name = name;
    known->second.push_back(std::move(kind));
  }
  return known->second;
}

void Placing::MakeRoomFor(const Job& job) {
  const auto lacking = lacking_.find(job.uid());
  if (lacking == lacking_.end() || !state_.options.preemption) return;
  auto [missing, kind] = lacking->second;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    // Expected back until its lease is over.
    const Worker* worker = state_.Member(job, rank);
    if (worker != nullptr && !worker->attached() && !state_.IsCordoned(*worker)) --missing;
  }
  if (missing <= 0) return;
  std::span<Kind> kinds = BusyFor(WishesOf(state_, job));
  if (!kind.empty()) {
    const auto of =
        std::find_if(kinds.begin(), kinds.end(), [&](const Kind& one) { return one.name == kind; });
    kinds = of == kinds.end() ? std::span<Kind>() : std::span<Kind>(&*of, 1);
  }
  preemption_.MakeRoom(job, missing, kinds);
  state_.last_lacking = job.queue_key();
}

Choice Placing::Choose(const Requirement& requirement) const {
  struct Group {
    int fitting = 0;
    // With preemption, of those that are away: what was freed is kept meanwhile.
    int away = 0;
    Kind kind;
  };
  std::map<std::string, Group> groups;
  for (auto& [name, worker] : state_.workers) {
    if (worker.lost || !MisfitOf(requirement, worker).empty()) continue;
    Group& group = groups[KindOf(worker.hardware, worker.version)];
    if (worker.attached()) ++group.fitting;
    const bool back_soon = !worker.attached() && !worker.unresponsive;
    if (state_.options.preemption && back_soon) ++group.away;
    if (IsMemberOrAway(worker)) group.kind.busy.push_back(&worker);
  }
  for (Worker* worker : idle_) {
    if (MisfitOf(requirement, *worker).empty()) {
      groups[KindOf(worker->hardware, worker->version)].kind.idle.push_back(worker);
    }
  }
  Choice choice;
  std::vector<Group> most_first;
  for (auto& [name, group] : groups) {
    if (static_cast<int>(group.kind.idle.size()) >= requirement.workers) {
      choice.members = group.kind.idle;
      return choice;
    }
    most_first.push_back(std::move(group));
  }
  std::stable_sort(most_first.begin(), most_first.end(), [](const Group& one, const Group& other) {
    return one.fitting + one.away > other.fitting + other.away;
  });
  const Group most = most_first.empty() ? Group() : most_first.front();
  choice.reason =
      WhyNot(requirement, most.fitting, most.away, static_cast<int>(most.kind.idle.size()));
  for (Group& group : most_first) {
    if (group.fitting + group.away < requirement.workers) continue;
    choice.kinds.push_back(std::move(group.kind));
  }
  return choice;
}

v1::PendingReason Placing::WhyNot(const Requirement& requirement, int fitting, int away,
                                  int idle) const {
  v1::PendingReason reason;
  const std::string needs = absl::StrFormat("needs %d workers", requirement.workers);
  if (fitting + away >= requirement.workers) {
    reason.set_code(kWorkersBusy);
    reason.set_message(
        absl::StrFormat("%s; of %d suitable ones %d are free for it", needs, fitting + away, idle));
  } else if (attached_ < requirement.workers) {
    reason.set_code("NOT_ENOUGH_WORKERS");
    reason.set_message(absl::StrFormat("%s; %d are there", needs, attached_));
  } else {
    reason.set_code("WORKERS_UNSUITABLE");
    int differing = attached_ - fitting;
    std::map<std::string, int> misfits;
    for (const auto& [name, worker] : state_.workers) {
      if (!worker.attached()) continue;
      const std::string misfit = MisfitOf(requirement, worker);
      if (misfit.empty()) continue;
      ++misfits[misfit];
      --differing;
    }
    std::vector<std::string> parts;
    for (const auto& [misfit, count] : misfits) {
      parts.push_back(absl::StrFormat("%d with %s", count, misfit));
    }
    if (differing > 0) {
      parts.push_back(absl::StrFormat(
          "%d with another device, GPU model, CPU code path, transport or build than those",
          differing));
    }
    reason.set_message(absl::StrFormat("%s that are alike; of %d at most %d are suitable: %s",
                                       needs, attached_, fitting, absl::StrJoin(parts, ", ")));
  }
  return reason;
}

// Says so, and is done with a job that its queue's quota holds back: the workers are for others.
bool Placing::IsHeldByQuota(Job& job, const Requirement& requirement, int position) {
  ClusterQueue& queue = state_.queues.at(job.spec().queue());
  std::optional<v1::PendingReason> reason = ExceedsQuota(queue, requirement.workers);
  if (!reason.has_value()) return false;
  reason->set_queue_position(position);
  SetReason(job, *std::move(reason));
  if (!CanBeWithinQuota(queue, requirement.workers)) return true;
  if (preemption_.MayMakeQuota(job)) {
    std::map<std::string, int> idle;
    for (const Worker* worker : idle_) {
      if (MisfitOf(requirement, *worker).empty()) {
        ++idle[KindOf(worker->hardware, worker->version)];
      }
    }
    preemption_.MakeQuota(job, requirement.workers, QuotaLeft(queue) - QuotaOverdrawn(queue), idle,
                          BusyFor(requirement));
  }
  queue.kept += requirement.workers;
  return true;
}

bool Placing::Queue(Job& job, int position) {
  const Requirement requirement = WishesOf(state_, job);
  auto known = known_.find(requirement);
  if (known == known_.end()) known = known_.emplace(requirement, Choose(requirement)).first;
  Choice& choice = known->second;
  const bool may_run = !choice.members.empty() || !choice.kinds.empty();
  if (may_run && IsHeldByQuota(job, requirement, position)) return true;
  if (choice.members.empty()) {
    v1::PendingReason reason = choice.reason;
    reason.set_queue_position(position);
    // It is placed before any behind it, also as far as its queue's quota is concerned.
    if (may_run) {
      state_.queues.at(job.spec().queue()).kept += requirement.workers;
    }
    SetReason(job, std::move(reason));
    Keep(preemption_.MakeRoom(job, requirement.workers, choice.kinds));
    return true;
  }
  std::vector<Worker*> members = choice.members;
  // What was freed for others is left to them where it can be: they may have no use for the rest.
  const auto theirs = std::stable_partition(members.begin(), members.end(), [&](Worker* worker) {
    return !IsFreedForOther(state_, *worker, job);
  });
  members.erase(std::max(theirs, members.begin() + requirement.workers), members.end());
  std::vector<Place> candidates;
  for (const Worker* worker : members) candidates.push_back(PlaceOf(*worker, -1));
  const v1::Hardware& hardware = choice.members.front()->hardware;
  FixDevice(hardware.device(), job.record.mutable_job()->mutable_spec());
  job.record.set_cpu_capability(hardware.cpu_capability());
  job.record.set_transport(TransportOf(hardware.device()));
  Begin(job, OrderRings(ChoosePlaces(std::move(candidates), {}, requirement.workers,
                                     requirement.ring_size),
                        requirement.ring_size));
  return false;
}

JobQueue Recovering(State& state) {
  JobQueue jobs;
  for (const auto& [age, job] : state.unfinished) {
    if (WaitsForWorkers(state, *job)) jobs[job->queue_key()] = job;
  }
  return jobs;
}

// All that wait, in their order, until no worker is left for the others. False when some were not
// told why they wait.
bool LookAtAll(State& state, Placing& placing) {
  state.keeps_idle = false;
  state.last_lacking = kFirstInQueue;
  for (auto& [name, worker] : state.workers) worker.claimed = false;
  for (auto& [id, queue] : state.queues) {
    queue.kept = 0;
    queue.has_no_victims = false;
  }
  const JobQueue recovering = Recovering(state);
  for (const auto& [place, job] : recovering) placing.Recover(*job);
  // Recoveries have others stopped at their places among the jobs that wait.
  FairOrder order(state, recovering);
  const bool to_the_last = std::exchange(state.explanation_due, false);
  int position = 1;
  while (Job* job = order.Next()) {
    if (job->status().state() != v1::TrainingJobStatus::QUEUED) {
      placing.MakeRoomFor(*job);
    } else if (to_the_last || position <= state.options.shown_positions || !placing.IsOver()) {
      const bool waits = placing.Queue(*job, position);
      position += static_cast<int>(waits);
      // Its queue's share is larger now: others may be before those looked at.
      if (!waits && state.queues.size() > 1) state.placement_due = true;
    } else {
      return false;
    }
  }
  state.explained = state.now;
  state.timers.Cancel(TimerKind::kExplain, "");
  return true;
}

// What came to the end of the queue, or is too far behind to have been looked at. False when some
// may be before others of other queues.
bool LookAtNew(State& state, Placing& placing, const std::vector<std::string>& names) {
  JobQueue jobs;
  for (const std::string& name : names) {
    Job* job = state.FindJob(name);
    const bool waits = job != nullptr && job->status().state() == v1::TrainingJobStatus::QUEUED;
    if (waits && !job->status().has_pending_reason()) jobs[job->queue_key()] = job;
  }
  const bool kept_idle = state.keeps_idle;
  bool in_place = true;
  auto position = static_cast<int>(state.queue.size() - jobs.size());
  for (const auto& [place, job] : jobs) {
    if (placing.Queue(*job, position + 1)) ++position;
    const size_t of_its_queue = state.queues.at(job->spec().queue()).waiting.size();
    in_place = in_place && of_its_queue == state.queue.size();
  }
  // What is kept since may be others', by their shares.
  if (!in_place && state.keeps_idle && !kept_idle) state.placement_due = true;
  return in_place;
}

}  // namespace

void RunPlacer(State& state) {
  if (state.draining || (!state.placement_due && state.new_jobs.empty())) return;
  Placing placing(state);
  const std::vector<std::string> names = std::exchange(state.new_jobs, {});
  bool told = true;
  if (std::exchange(state.placement_due, false)) {
    told = LookAtAll(state, placing);
  } else {
    placing.KeepOnly(state.unreserved);
  }
  told = LookAtNew(state, placing, names) && told;
  // Reasons name what was idle, and held, before others were placed.
  if (!told || placing.placed()) {
    const absl::Time when = state.explained + state.options.explanation_interval;
    // A time that is past would look like a loop that is late.
    state.timers.Set(TimerKind::kExplain, "", std::max(state.now, when));
  }
  state.unreserved = placing.IdleNames();
  // Somebody was stopped, or left, for another, or the order is another one.
  if (state.placement_due) RunPlacer(state);
}

}  // namespace ringmaster::coordinator
