#include "coordinator/core/pause.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/cordon.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/preemption.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/run_clock.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;

constexpr char kAsked[] = "a user asked for it";

std::string OverTime(const Job& job) {
  return absl::StrFormat("its max_runtime of %s is over",
                         absl::FormatDuration(FromProto(job.spec().max_runtime())));
}

void FinishRing(State& state, Job& job) {
  SetState(state, job, S::PAUSING, ReasonToStop(state, job));
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    if (worker != nullptr) TellFinish(state, job, rank, *worker);
  }
}

// Of a ring that has stopped.
std::string ReasonItStopped(const State& state, const Job& job) {
  const std::string reason = ReasonToStop(state, job);
  if (!reason.empty()) return reason;
  // For whom is not known after a restart, only what was said then.
  const std::string& said = job.status().state_reason();
  if (job.preempted_by.empty() && absl::EndsWith(said, kTakesItsPlace)) return said;
  return "what it stopped for was taken back";
}

// `mishap` is why not all steps are in a checkpoint; empty when they are.
void EndOverTime(State& state, Job& job, const std::string& mishap) {
  const std::string& last = job.status().last_checkpoint();
  Fail(state, job, v1::MAX_RUNTIME_REACHED,
       absl::StrFormat("%s after step %d of %d; the newest checkpoint is %s%s%s", OverTime(job),
                       job.status().progress().step(), job.spec().steps(),
                       last.empty() ? "none" : last, mishap.empty() ? "" : "; ", mishap));
}

}  // namespace

std::string ReasonToStop(const State& state, const Job& job) {
  if (IsOverTime(job)) return OverTime(job);
  if (job.status().pause_requested()) return kAsked;
  const std::string drain = state.now < job.stop_again ? "" : DrainOf(state, job);
  return drain.empty() ? PreemptionOf(state, job) : drain;
}

void StopIfAsked(State& state, Job& job) {
  if (job.status().state() == S::RUNNING && !ReasonToStop(state, job).empty()) {
    FinishRing(state, job);
  }
}

void DelayStop(State& state, Job& job) {
  if (job.stop_again < absl::InfiniteFuture()) return;
  job.stop_again = state.now + DelayAfter(job.failed_stops - 1);
  state.timers.Set(TimerKind::kStopAgain, job.name(), job.stop_again);
}

void OnRunClock(State& state, Job& job) {
  if (state.store_full) {
    // A ring that has finished would wait until there is room for its checkpoint.
    state.timers.Set(TimerKind::kRunClock, job.name(),
                     state.now + state.options.progress_store_interval);
    return;
  }
  CountRunTime(state, job);
  if (IsOverTime(job)) return FinishRing(state, job);
  StoreProgress(state, job);
  WindRunClock(state, job);
}

void TellFinish(State& state, const Job& job, int rank, const Worker& worker) {
  v1::Directive directive;
  *directive.mutable_finish_steps()->mutable_ring() = RefOf(job, rank);
  Tell(state, worker, std::move(directive));
}

void RequestPause(State& state, Job& job) {
  job.mutable_status()->set_pause_requested(true);
  switch (job.status().state()) {
    case S::QUEUED:
      return SetState(state, job, S::PAUSED, kAsked);
    case S::RUNNING:
      return FinishRing(state, job);
    default:
      // Members may hold steps that no checkpoint has: first the ring must stand.
      SetEtag(job);
      Store(state, job);
  }
}

void RequestResume(State& state, Job& job) {
  job.mutable_status()->clear_pause_requested();
  if (job.status().state() == S::PAUSED) {
    // What made it fail was seen to. An open recovery goes on now; it did not last meanwhile.
    job.record.clear_recoveries_counted();
    job.phase_end = state.now;
    SetState(state, job, S::QUEUED, "");
  } else {
    // A ring that was told to finish does so, and the job is queued.
    SetEtag(job);
    Store(state, job);
  }
}

bool LeaveIfSaved(State& state, Job& job) {
  if (job.status().state() != S::PAUSING) return false;
  for (const RankState& rank : job.ranks) {
    if (!rank.finished || !IsCommitted(state, job, rank.held.step())) continue;
    // What rank 0 told of it may have been lost with the store's last words.
    job.SetStep(rank.held.step());
    if (IsOverTime(job)) {
      EndOverTime(state, job, "");
    } else {
      LeaveRing(state, job, ReasonItStopped(state, job));
    }
    return true;
  }
  return false;
}

void CompletePause(State& state, Job& job) {
  if (LeaveIfSaved(state, job)) return;
  for (const RankState& rank : job.ranks) {
    if (rank.checkpoint_error.empty()) continue;
    if (IsOverTime(job)) {
      return EndOverTime(state, job,
                         absl::StrCat("another one could not be written: ", rank.checkpoint_error));
    }
    // Trying again at once would take a step each time, until the disk is mended.
    const std::string what = job.status().pause_requested() ? "the job was not paused and goes on"
                                                            : "the job goes on without a pause";
    job.mutable_status()->clear_pause_requested();
    job.preempted_by.clear();
    ++job.failed_stops;
    // The pause begins when the ring stands.
    job.stop_again = absl::InfiniteFuture();
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::OPERATOR,
                .message = absl::StrCat(
                    what, ", as its checkpoint could not be written: ", rank.checkpoint_error)});
    return;
  }
  // The commit waits for room in the store.
  if (state.store_full) return;
  GiveUpRing(state, job,
             {.cause = v1::RecoveryEpisode::COMMUNICATION,
              .message = "the reports of the checkpoint to pause at were lost"});
}

void LeaveRing(State& state, Job& job, const std::string& reason) {
  if (IsOverTime(job)) return EndOverTime(state, job, reason);
  const bool pauses = job.status().pause_requested();
  ReleaseMembers(state, job, pauses ? "the job is paused" : "the job went back to the queue");
  job.record.set_stage(store::RING_STAGE_NONE);
  job.mutable_status()->clear_ranks();
  job.ranks.clear();
  job.waiting = false;
  job.preempted_by.clear();
  job.run_since = absl::InfiniteFuture();
  job.failed_stops = 0;
  job.stop_again = absl::InfinitePast();
  job.mutable_status()->mutable_progress()->clear_tokens_per_second();
  job.mutable_status()->mutable_progress()->clear_remaining();
  for (const TimerKind timer :
       {TimerKind::kStage, TimerKind::kRejoin, TimerKind::kRetry, TimerKind::kStopAgain}) {
    state.timers.Cancel(timer, job.name());
  }
  SetState(state, job, pauses ? S::PAUSED : S::QUEUED, reason);
}

}  // namespace ringmaster::coordinator
