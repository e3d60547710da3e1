#include "coordinator/core/pause.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/recovery.h"

namespace ringmaster::coordinator {
namespace {

using S = v1::TrainingJobStatus;

constexpr char kAsked[] = "a user asked for it";

}  // namespace

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
      SetState(state, job, S::PAUSING, kAsked);
      for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
        const Worker* worker = state.Member(job, rank);
        if (worker != nullptr) TellFinish(state, job, rank, *worker);
      }
      return;
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
    LeaveRing(state, job, job.status().pause_requested() ? kAsked : "resumed while it paused");
    return true;
  }
  return false;
}

void CompletePause(State& state, Job& job) {
  if (LeaveIfSaved(state, job)) return;
  for (const RankState& rank : job.ranks) {
    if (rank.checkpoint_error.empty()) continue;
    // Trying again would take a step each time, until the disk is mended.
    job.mutable_status()->clear_pause_requested();
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::OPERATOR,
                .message = absl::StrCat("the job was not paused and goes on, as its checkpoint "
                                        "could not be written: ",
                                        rank.checkpoint_error)});
    return;
  }
  // The commit waits for room in the store.
  if (state.store_full) return;
  GiveUpRing(state, job,
             {.cause = v1::RecoveryEpisode::COMMUNICATION,
              .message = "the reports of the checkpoint to pause at were lost"});
}

void LeaveRing(State& state, Job& job, const std::string& reason) {
  const bool pauses = job.status().pause_requested();
  ReleaseMembers(state, job, pauses ? "the job is paused" : "the job went back to the queue");
  job.record.set_stage(store::RING_STAGE_NONE);
  job.mutable_status()->clear_ranks();
  job.ranks.clear();
  job.waiting = false;
  job.mutable_status()->mutable_progress()->clear_tokens_per_second();
  job.mutable_status()->mutable_progress()->clear_remaining();
  for (const TimerKind timer : {TimerKind::kStage, TimerKind::kRejoin, TimerKind::kRetry}) {
    state.timers.Cancel(timer, job.name());
  }
  SetState(state, job, pauses ? S::PAUSED : S::QUEUED, reason);
}

}  // namespace ringmaster::coordinator
