#include "coordinator/core/blame.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "coordinator/core/lifecycle.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/suitability.h"

namespace ringmaster::coordinator {
namespace {

// A worker that lacked something may have it later; a new process of it is looked at anew at once.
// Shorter than a job waits for workers before its survivors forget its state.
constexpr absl::Duration kPassedOverFor = absl::Minutes(5);

bool IsProven(const Job& job, int rank) {
  return job.proven.count(job.status().ranks(rank).incarnation()) > 0;
}

// An idle worker could take the rank's place.
bool HasReplacement(State& state, const Job& job, int rank) {
  const Worker* member = state.Member(job, rank);
  if (member == nullptr) return false;
  const std::string kind = KindOf(member->hardware, member->version);
  const Requirement requirement = RequirementOf(job.record);
  return std::any_of(state.workers.begin(), state.workers.end(), [&](const auto& entry) {
    const Worker& worker = entry.second;
    return worker.attached() && worker.job.empty() && !worker.unresponsive &&
           KindOf(worker.hardware, worker.version) == kind &&
           Misfit(requirement, worker.hardware).empty() && UnfitReason(state, job, worker).empty();
  });
}

}  // namespace

void NoteProven(Job& job) {
  if (job.proven_in == job.generation()) return;
  job.proven_in = job.generation();
  job.proven.clear();
  for (const v1::RankAssignment& rank : job.status().ranks()) {
    job.proven.insert(rank.incarnation());
  }
}

std::optional<std::vector<int>> Blamed(State& state, const Job& job, int rank,
                                       const v1::Fault& fault) {
  std::vector<int> newcomers;
  bool witness = false;
  bool all_proven = true;
  for (int other = 0; other < job.status().ranks_size(); ++other) {
    const bool proven = IsProven(job, other);
    witness = witness || proven;
    all_proven = all_proven && proven;
    if (!proven && state.Member(job, other) != nullptr) newcomers.push_back(other);
  }
  if (!witness || all_proven || job.proven_in == job.generation()) return std::nullopt;
  switch (fault.kind()) {
    case v1::Fault::COMMUNICATION_ERROR:
    case v1::Fault::NOT_FINITE:
      return std::nullopt;
    case v1::Fault::CHECKPOINT_ERROR:
      // A checksum is no worker's lack.
      if (fault.deterministic()) return std::nullopt;
      break;
    case v1::Fault::DATA_ERROR:
      // What all ranks find out together, that their files differ, each of them tells; the newcomer
      // may have died meanwhile.
      if (fault.deterministic() && IsProven(job, rank)) return newcomers;
      break;
    default:
      break;
  }
  const bool of_newcomer = std::find(newcomers.begin(), newcomers.end(), rank) != newcomers.end();
  // What may pass is tried again with the same worker when there is no other.
  const bool passes_over = fault.deterministic() || HasReplacement(state, job, rank);
  if (!of_newcomer || !passes_over) return std::nullopt;
  return std::vector<int>{rank};
}

std::string PassOver(State& state, Job& job, int rank, const std::string& reason) {
  Worker* worker = state.Member(job, rank);
  job.blamed_in = job.generation();
  job.unfit[worker->name] = {worker->incarnation, state.now + kPassedOverFor, reason};
  OnForgiveTimer(state, job);
  TellRelease(state, *worker, job.name(), job.uid(), job.generation(), reason);
  DropMember(job, *worker);
  return worker->name;
}

std::string UnfitReason(const State& state, const Job& job, const Worker& worker) {
  const auto found = job.unfit.find(worker.name);
  const bool unfit = found != job.unfit.end() && found->second.until > state.now &&
                     found->second.incarnation == worker.incarnation;
  return unfit ? found->second.reason : "";
}

void OnForgiveTimer(State& state, Job& job) {
  absl::Time next = absl::InfiniteFuture();
  std::erase_if(job.unfit, [&](const auto& entry) { return entry.second.until <= state.now; });
  for (const auto& [name, unfit] : job.unfit) next = std::min(next, unfit.until);
  if (!job.unfit.empty()) state.timers.Set(TimerKind::kForgive, job.name(), next);
  state.placement_due = true;
}

}  // namespace ringmaster::coordinator
