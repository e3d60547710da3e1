#include "coordinator/core/blame.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "coordinator/core/lifecycle.h"
#include "coordinator/core/recovery.h"

namespace ringmaster::coordinator {
namespace {

// A worker that lacked something may have it later; a new process of it is looked at anew at once.
// Shorter than a job waits by default for workers before its survivors forget its state.
constexpr absl::Duration kPassedOverFor = absl::Minutes(5);
// What may pass, such as memory that the driver has not freed yet.
constexpr absl::Duration kFirstPassingOver = absl::Seconds(1);

bool IsProven(const Job& job, int rank) {
  const std::string& incarnation = job.status().ranks(rank).incarnation();
  const auto& proven = job.record.proven();
  return !incarnation.empty() &&
         std::find(proven.begin(), proven.end(), incarnation) != proven.end();
}

bool HasWitness(const Job& job) {
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    if (IsProven(job, rank)) return true;
  }
  return false;
}

// The time until when a failing counts: it is forgiven by then, but not forgotten.
absl::Time RememberedUntil(const Unfit& unfit) { return unfit.until + kPassedOverFor; }

// Of other ranks, by the rank that tells.
struct Accusation {
  bool made = false;
  bool of_proven = false;
  // Those that are still there.
  std::vector<int> of_newcomers;
};

Accusation AccusationOf(State& state, const Job& job, int rank, const v1::Fault& fault) {
  Accusation accusation;
  for (const int accused : fault.accused_ranks()) {
    if (accused < 0 || accused >= job.status().ranks_size() || accused == rank) continue;
    accusation.made = true;
    if (IsProven(job, accused)) {
      accusation.of_proven = true;
    } else if (state.Member(job, accused) != nullptr) {
      accusation.of_newcomers.push_back(accused);
    }
  }
  return accusation;
}

// Without a witness somebody could not run the job, and would not another time either.
bool WasToldBefore(const State& state, const Job& job) {
  return std::any_of(job.unfit.begin(), job.unfit.end(), [&](const auto& entry) {
    return entry.second.lasting && !entry.second.witnessed &&
           RememberedUntil(entry.second) > state.now;
  });
}

}  // namespace

bool NoteProven(Job& job) {
  if (job.record.proven_in() == job.generation()) return false;
  job.record.set_proven_in(job.generation());
  job.record.clear_proven();
  for (const v1::RankAssignment& rank : job.status().ranks()) {
    job.record.add_proven(rank.incarnation());
  }
  return true;
}

std::optional<std::vector<int>> Blamed(State& state, const Job& job, int rank,
                                       const v1::Fault& fault) {
  const bool has_run = job.record.proven_in() > 0;
  if (!has_run || job.record.proven_in() == job.generation()) return std::nullopt;
  // A checksum is no worker's lack.
  if (fault.kind() == v1::Fault::COMMUNICATION_ERROR || fault.kind() == v1::Fault::NOT_FINITE ||
      (fault.kind() == v1::Fault::CHECKPOINT_ERROR && fault.deterministic())) {
    return std::nullopt;
  }
  const Accusation accusation = AccusationOf(state, job, rank, fault);
  const bool witness = HasWitness(job);
  if (witness && accusation.made && !accusation.of_proven) return accusation.of_newcomers;
  if (IsProven(job, rank)) return std::nullopt;
  if (!witness && (!fault.deterministic() || WasToldBefore(state, job))) return std::nullopt;
  return std::vector<int>{rank};
}

std::string PassOver(State& state, Job& job, int rank, bool lasting, const std::string& reason) {
  Worker* worker = state.Member(job, rank);
  Unfit& unfit = job.unfit[worker->name];
  absl::Duration pause = kPassedOverFor;
  if (!lasting) {
    const bool again = !unfit.lasting && unfit.incarnation == worker->incarnation;
    pause = std::min(again ? 2 * unfit.pause : kFirstPassingOver, kPassedOverFor);
  }
  unfit = {.incarnation = worker->incarnation,
           .lasting = lasting,
           .witnessed = HasWitness(job),
           .pause = pause,
           .until = state.now + pause,
           .reason = reason};
  OnForgiveTimer(state, job);
  TellRelease(state, *worker, job.name(), job.uid(), job.generation(), reason);
  DropMember(job, *worker);
  return worker->name;
}

bool FailedBefore(const Job& job, const Worker& worker) {
  const auto found = job.unfit.find(worker.name);
  return found != job.unfit.end() && found->second.incarnation == worker.incarnation;
}

bool HasNotPassed(State& state, const Job& job, int rank) {
  const Worker* worker = state.Member(job, rank);
  return worker != nullptr && FailedBefore(job, *worker) &&
         job.unfit.at(worker->name).pause >= kPassedOverFor;
}

std::string UnfitReason(const State& state, const Job& job, const Worker& worker) {
  if (!FailedBefore(job, worker)) return "";
  const Unfit& unfit = job.unfit.at(worker.name);
  return unfit.until > state.now ? unfit.reason : "";
}

void OnForgiveTimer(State& state, Job& job) {
  std::erase_if(job.unfit,
                [&](const auto& entry) { return RememberedUntil(entry.second) <= state.now; });
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [name, unfit] : job.unfit) {
    next = std::min(next, unfit.until > state.now ? unfit.until : RememberedUntil(unfit));
  }
  if (!job.unfit.empty()) state.timers.Set(TimerKind::kForgive, job.name(), next);
  state.placement_due = true;
}

}  // namespace ringmaster::coordinator
