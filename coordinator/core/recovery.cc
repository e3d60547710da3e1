#include "coordinator/core/recovery.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/episodes.h"
#include "coordinator/core/faults.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

bool HasLiveRing(const Job& job) {
  return job.record.stage() == store::RING_STAGE_FORMING ||
         job.record.stage() == store::RING_STAGE_STARTED;
}

// What operators and coordinator restarts cause is not held against the job.
bool CountsAgainstBudget(v1::RecoveryEpisode::Cause cause) {
  return cause != v1::RecoveryEpisode::OPERATOR &&
         cause != v1::RecoveryEpisode::COORDINATOR_RESTART;
}

// The first attempt follows the fault at once. When it fails too, what broke it may stay for a
// while, and every attempt costs one of recovery.episodes_max.
constexpr absl::Duration kFirstDelay = absl::Milliseconds(250);
constexpr absl::Duration kLongestDelay = absl::Seconds(30);

// Every member is told to abort; the ring is ABORTING from now on.
void AbortRing(State& state, Job& job, const std::string& reason) {
  DiscardShards(state, job);
  job.record.set_stage(store::RING_STAGE_ABORTING);
  job.adopting = false;
  job.connecting = false;
  job.waiting = false;
  absl::Duration patience =
      FromProto(job.spec().recovery().abort_deadline()) + state.options.abort_margin;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    job.ranks[rank] = {};
    const Worker* worker = state.Member(job, rank);
    if (worker == nullptr) continue;
    TellAbort(state, job, rank, *worker, reason);
    if (worker->unseen) patience = std::max(patience, state.options.adoption_window);
  }
  state.timers.Set(TimerKind::kStage, job.name(), state.now + patience);
  Store(state, job);
}

// Who is to blame in the eyes of the rank that reports, by the names that an operator knows.
std::string Accusation(const Job& job, const v1::Fault& fault) {
  std::string text;
  for (const int accused : fault.accused_ranks()) {
    if (accused < 0 || accused >= job.status().ranks_size()) continue;
    absl::StrAppendFormat(&text, " (rank %d is %s)", accused, job.status().ranks(accused).worker());
  }
  return text;
}

// Fails the job when trying again makes no sense.
bool EndsJob(State& state, Job& job, const v1::Fault& fault, const std::string& message) {
  const FaultVerdict verdict = Judge(job, fault);
  if (verdict.ends_job) {
    Fail(state, job, verdict.failure_class, absl::StrCat(message, verdict.remark));
  }
  return verdict.ends_job;
}

// A member of an ABORTING ring that may still answer.
bool IsAwaited(const State& state, const Worker& worker) {
  return worker.attached() || worker.unseen ||
         state.now < worker.detached + state.options.suspect_grace;
}

}  // namespace

absl::Duration DelayAfter(int64_t failures) {
  absl::Duration delay;
  for (; failures > 0 && delay < kLongestDelay; --failures) {
    delay = std::max(kFirstDelay, 2 * delay);
  }
  return std::min(delay, kLongestDelay);
}

void TellAbort(State& state, const Job& job, int rank, const Worker& worker,
               const std::string& reason) {
  v1::Directive directive;
  *directive.mutable_abort_ring()->mutable_ring() = RefOf(job, rank);
  directive.mutable_abort_ring()->set_reason(reason);
  Tell(state, worker, std::move(directive));
}

void DropMember(Job& job, Worker& worker) {
  job.mutable_status()->mutable_ranks(worker.rank)->clear_incarnation();
  worker.job.clear();
}

void GiveUpRing(State& state, Job& job, const RingLoss& loss) {
  if (job.record.stage() == store::RING_STAGE_ABORTING) {
    for (const std::string& worker : loss.lost_workers) AddLostWorker(job, worker);
    ExplainEpisode(job, loss.cause, loss.message, loss.fault_time);
    Store(state, job);
    CheckAborted(state, job);
    return;
  }
  if (!HasLiveRing(job)) return;
  if (IsCommitted(state, job, job.spec().steps())) {
    Succeed(state, job);
    return;
  }
  if (LeaveIfSaved(state, job)) return;
  if (CountsAgainstBudget(loss.cause)) {
    const int64_t counted = job.record.recoveries_counted() + 1;
    const int64_t budget = job.spec().recovery().episodes_max();
    if (counted > budget) {
      const std::string reason = absl::StrFormat(
          "recovery.episodes_max (%d) recoveries in a row brought the job no further; the last "
          "fault: %s",
          budget, loss.message);
      // Whoever paused it is about to look after it.
      if (job.status().pause_requested()) return LeaveRing(state, job, reason);
      return Fail(state, job, v1::BUDGET_EXHAUSTED, reason);
    }
    job.record.set_recoveries_counted(counted);
  }
  BeginEpisode(state, job, loss.cause, loss.message, loss.fault_time);
  for (const std::string& worker : loss.lost_workers) AddLostWorker(job, worker);
  SetState(state, job, v1::TrainingJobStatus::RECOVERING, loss.message);
  AbortRing(state, job, loss.message);
  CheckAborted(state, job);
}

void OnFault(State& state, Job& job, int rank, const v1::Fault& fault) {
  if (IsTerminal(job.status().state()) ||
      job.status().state() == v1::TrainingJobStatus::CANCELLING) {
    return;
  }
  const std::string message = absl::StrFormat(
      "%s (rank %d): %s%s%s%s", job.status().ranks(rank).worker(), rank, Shortened(fault.where()),
      fault.where().empty() ? "" : ": ", Shortened(fault.message()), Accusation(job, fault));
  const auto blamed = Blamed(state, job, rank, fault);
  NoteUnreadable(state, job, fault, blamed.has_value());
  if (blamed.has_value()) {
    if (!fault.deterministic() && HasNotPassed(state, job, rank) &&
        EndsJob(state, job, fault, message)) {
      return;
    }
    RingLoss loss{.cause = CauseOf(fault.kind()), .message = message};
    for (const int one : *blamed) {
      loss.lost_workers.push_back(PassOver(state, job, one, fault.deterministic(), message));
      ++state.counters.worker_quarantines[v1::Fault::Kind_Name(fault.kind())];
    }
    GiveUpRing(state, job, loss);
    return;
  }
  // In an ABORTING ring most faults are echoes of the first one. That of the work itself may be
  // overtaken by its peers' loss of the rank, and counts all the same.
  const bool echo = job.record.stage() == store::RING_STAGE_ABORTING && !fault.deterministic();
  if (echo) ExplainEpisode(job, CauseOf(fault.kind()), message, std::nullopt);
  if ((!echo || MayRepeat(fault.kind())) && EndsJob(state, job, fault, message)) return;
  if (echo) {
    Store(state, job);
  } else {
    GiveUpRing(state, job, {.cause = CauseOf(fault.kind()), .message = message});
  }
}

void OnRingAborted(State& state, Job& job, int rank, const v1::RingAborted& aborted) {
  if (HasLiveRing(job)) {
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::OPERATOR,
                .message = absl::StrFormat("%s (rank %d) left the ring",
                                           job.status().ranks(rank).worker(), rank)});
  }
  if (job.record.stage() != store::RING_STAGE_ABORTING) return;
  job.ranks[rank].aborted = true;
  job.ranks[rank].held = aborted.state();
  CheckAborted(state, job);
}

void BeginCancel(State& state, Job& job) {
  SetState(state, job, v1::TrainingJobStatus::CANCELLING, "a user asked for it");
  if (HasLiveRing(job)) AbortRing(state, job, "the job is cancelled");
  CheckAborted(state, job);
}

void CheckAborted(State& state, Job& job) {
  if (job.record.stage() != store::RING_STAGE_ABORTING) return;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    if (worker != nullptr && !job.ranks[rank].aborted && IsAwaited(state, *worker)) return;
  }
  if (job.status().state() == v1::TrainingJobStatus::CANCELLING) {
    FinishCancel(state, job);
    return;
  }
  state.placement_due = true;
  if (job.waiting) return;
  job.waiting = true;
  MarkAborted(state, job);
  state.timers.Cancel(TimerKind::kStage, job.name());
  job.retry_at = state.now + DelayAfter(FailedAttempts(job));
  if (job.retry_at > state.now) state.timers.Set(TimerKind::kRetry, job.name(), job.retry_at);
  state.timers.Set(TimerKind::kRejoin, job.name(),
                   job.retry_at + FromProto(job.spec().recovery().rejoin_timeout()));
  Store(state, job);
}

void OnAbortTimeout(State& state, Job& job) {
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    Worker* worker = state.Member(job, rank);
    if (worker == nullptr || job.ranks[rank].aborted) continue;
    AddLostWorker(job, worker->name);
    TellRelease(state, *worker, job.name(), job.uid(), job.generation(),
                "it did not abort the ring in time");
    DropMember(job, *worker);
    worker->unresponsive = true;
    ++state.counters.worker_quarantines["NO_ABORT"];
  }
  Store(state, job);
  CheckAborted(state, job);
}

void OnRejoinTimeout(State& state, Job& job) {
  if (job.status().state() != v1::TrainingJobStatus::RECOVERING) return;
  LeaveRing(state, job,
            absl::StrCat("no replacement came within ",
                         absl::FormatDuration(FromProto(job.spec().recovery().rejoin_timeout()))));
}

bool WaitsForWorkers(State& state, Job& job) {
  if (!job.waiting || job.record.stage() != store::RING_STAGE_ABORTING ||
      job.status().state() != v1::TrainingJobStatus::RECOVERING) {
    return false;
  }
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    // It has re-attached and is about to abort.
    if (worker != nullptr && worker->attached() && !job.ranks[rank].aborted) return false;
  }
  return true;
}

}  // namespace ringmaster::coordinator
