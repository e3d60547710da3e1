#include "coordinator/core/lifecycle.h"

#include <cassert>
#include <utility>

#include "absl/strings/str_format.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/episodes.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/preemption.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/run_clock.h"
#include "coordinator/core/times.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

using S = v1::TrainingJobStatus;

bool IsTerminal(JobState state) {
  return state == S::SUCCEEDED || state == S::FAILED || state == S::CANCELLED;
}

bool IsLegal(JobState from, JobState to) {
  switch (from) {
    case S::QUEUED:
      return to == S::STARTING || to == S::PAUSED || to == S::CANCELLING || to == S::FAILED;
    case S::STARTING:
      return to == S::RUNNING || to == S::RECOVERING || to == S::PAUSING || to == S::CANCELLING ||
             to == S::FAILED;
    case S::RUNNING:
      return to == S::SUCCEEDED || to == S::RECOVERING || to == S::PAUSING || to == S::CANCELLING ||
             to == S::FAILED;
    case S::RECOVERING:
      return to == S::RUNNING || to == S::QUEUED || to == S::PAUSING || to == S::PAUSED ||
             to == S::CANCELLING || to == S::FAILED;
    case S::PAUSING:
      return to == S::PAUSED || to == S::QUEUED || to == S::SUCCEEDED || to == S::RECOVERING ||
             to == S::CANCELLING || to == S::FAILED;
    case S::PAUSED:
      return to == S::QUEUED || to == S::CANCELLING;
    case S::CANCELLING:
      return to == S::CANCELLED;
    default:
      return false;
  }
}

namespace {

void Index(State& state, Job& job) {
  const auto key = job.age_key();
  if (IsTerminal(job.status().state())) {
    state.unfinished.erase(key);
  } else {
    state.unfinished[key] = &job;
  }
  for (const auto& [jobs, of] :
       {std::pair(&state.queue, S::QUEUED), std::pair(&state.running, S::RUNNING)}) {
    if (job.status().state() == of) {
      (*jobs)[job.queue_key()] = &job;
    } else {
      jobs->erase(job.queue_key());
    }
  }
  CountInQueue(state, job);
}

}  // namespace

void SetEtag(Job& job) {
  const int64_t version = job.record.version() + 1;
  job.record.set_version(version);
  job.record.mutable_job()->set_etag(absl::StrFormat("\"%s-%d\"", job.uid().substr(0, 8), version));
}

Job& AddJob(State& state, store::JobRecord record) {
  auto owned = std::make_unique<Job>();
  Job& job = *owned;
  job.record = std::move(record);
  job.ranks.resize(job.status().ranks_size());
  if (job.record.version() == 0) SetEtag(job);
  state.jobs[job.name()] = std::move(owned);
  state.jobs_by_uid[job.uid()] = &job;
  state.jobs_by_age[job.age_key()] = &job;
  Index(state, job);
  return job;
}

void RemoveJob(State& state, Job& job) {
  const std::string name = job.name();
  state.unfinished.erase(job.age_key());
  state.jobs_by_age.erase(job.age_key());
  state.jobs_by_uid.erase(job.uid());
  state.jobs.erase(name);
  state.jobs_to_store.insert(name);
}

void MoveInQueue(State& state, Job& job, const QueueKey& from) {
  if (job.queue_key() == from) return;
  const bool waits = state.queue.erase(from) > 0;
  if (waits) state.queues.at(job.spec().queue()).waiting.erase(from);
  const bool listed = waits || state.running.erase(from) > 0;
  if (listed) Index(state, job);
  // A broken ring has lower jobs stopped at its place.
  if (listed || job.status().state() == S::RECOVERING) {
    state.placement_due = state.explanation_due = true;
  }
}

void SetState(State& state, Job& job, JobState to, const std::string& reason) {
  const JobState from = job.status().state();
  if (from == to) {
    job.mutable_status()->set_state_reason(reason);
    Store(state, job);
    return;
  }
  assert(IsLegal(from, to));
  if (!IsLegal(from, to)) return;
  if (from == S::RUNNING) StopRunClock(state, job);
  v1::TrainingJobStatus* status = job.mutable_status();
  status->set_state(to);
  status->set_state_reason(reason);
  status->clear_pending_reason();
  v1::TrainingJob* proto = job.record.mutable_job();
  *proto->mutable_update_time() = ToProto(state.now);
  if ((to == S::RUNNING || to == S::PAUSING) && !proto->has_start_time()) {
    *proto->mutable_start_time() = ToProto(state.now);
  }
  if (to == S::QUEUED && (from == S::PAUSED || from == S::PAUSING)) {
    *proto->mutable_resume_time() = ToProto(state.now);
  }
  if (to == S::CANCELLING || IsTerminal(to)) status->clear_pause_requested();
  if (to == S::RUNNING) StartRunClock(state, job);
  SetEtag(job);
  Index(state, job);
  Store(state, job);
  // One that begins leaves no worker to others; but it may be stopped.
  const bool begins = to == S::STARTING || to == S::RUNNING;
  if (!begins || state.options.preemption) state.placement_due = true;
  if (to == S::QUEUED) state.new_jobs.push_back(job.name());
  if (IsTerminal(to)) {
    *proto->mutable_end_time() = ToProto(state.now);
    job.record.set_stage(store::RING_STAGE_NONE);
    state.timers.Cancel(TimerKind::kStage, job.name());
    state.timers.Cancel(TimerKind::kRejoin, job.name());
    state.timers.Cancel(TimerKind::kForgive, job.name());
    CloseEpisode(state, job);
    ++state.counters.jobs_finished[{to, status->failure_class()}];
  }
}

void TellRelease(State& state, const Worker& worker, const std::string& job, const std::string& uid,
                 int64_t generation, const std::string& reason) {
  v1::Directive directive;
  v1::ReleaseJob* release = directive.mutable_release_job();
  release->set_training_job(job);
  release->set_training_job_uid(uid);
  release->set_generation(generation);
  release->set_reason(reason);
  Tell(state, worker, std::move(directive));
}

namespace {

// What is left to do on the disk. Without rank 0, what it may have left undone is the next member's
// as well: perhaps no ring forms again.
void TellLastWords(State& state, Job& job) {
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    if (worker == nullptr || !worker->attached()) continue;
    if (rank > 0) {
      TellCheckpoints(state, job, *worker);
      job.garbage_told = 0;
    }
    TellGarbage(state, job, rank);
    return;
  }
}

}  // namespace

void ReleaseMembers(State& state, Job& job, const std::string& reason) {
  DiscardShards(state, job);
  TellLastWords(state, job);
  const Job* preemptor = PreemptorOf(state, job);
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    Worker* worker = state.Member(job, rank);
    if (worker == nullptr) continue;
    TellRelease(state, *worker, job.name(), job.uid(), job.generation(), reason);
    worker->job.clear();
    worker->freed_for = preemptor == nullptr ? "" : preemptor->uid();
  }
  state.placement_due = true;
}

void Fail(State& state, Job& job, v1::FailureClass failure_class, const std::string& reason) {
  job.mutable_status()->set_failure_class(failure_class);
  SetState(state, job, S::FAILED, reason);
  ReleaseMembers(state, job, "the job failed");
}

void Succeed(State& state, Job& job) {
  SetState(state, job, S::SUCCEEDED, "");
  ReleaseMembers(state, job, "the job succeeded");
}

void FinishCancel(State& state, Job& job) {
  SetState(state, job, S::CANCELLED, "cancelled by a user");
  ReleaseMembers(state, job, "the job was cancelled");
}

absl::Status Refusal(const State& state) {
  constexpr absl::Duration kRetryDelay = absl::Seconds(1);
  if (state.draining) return Unavailable("DRAINING", "the coordinator is stopping", kRetryDelay);
  if (state.store_full) {
    return Unavailable("STORE_FULL", "the coordinator's disk is full; nothing new can be stored",
                       10 * kRetryDelay);
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::coordinator
