#include "coordinator/core/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/cordon.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/job_list.h"
#include "coordinator/core/jobs.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/placer.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/reports.h"
#include "coordinator/core/restart.h"
#include "coordinator/core/run_clock.h"
#include "coordinator/core/times.h"
#include "coordinator/core/workers.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

template <typename T>
absl::StatusOr<ApiResponse> Response(absl::StatusOr<T> result) {
  if (!result.ok()) return result.status();
  return ApiResponse(*std::move(result));
}

absl::StatusOr<ApiResponse> Answer(State& state, const ApiRequest& request) {
  struct Visitor {
    State& state;
    const ApiRequest& request;
    using R = absl::StatusOr<ApiResponse>;
    R operator()(const v1::CreateTrainingJobRequest& r) {
      return Response(CreateJob(state, r, request.manifest));
    }
    R operator()(const v1::GetTrainingJobRequest& r) { return Response(GetJob(state, r)); }
    R operator()(const v1::ListTrainingJobsRequest& r) { return Response(ListJobs(state, r)); }
    R operator()(const v1::CancelTrainingJobRequest& r) { return Response(CancelJob(state, r)); }
    R operator()(const v1::UpdateTrainingJobRequest& r) { return Response(UpdateJob(state, r)); }
    R operator()(const v1::PauseTrainingJobRequest& r) { return Response(PauseJob(state, r)); }
    R operator()(const v1::ResumeTrainingJobRequest& r) { return Response(ResumeJob(state, r)); }
    R operator()(const v1::DeleteTrainingJobRequest& r) { return Response(DeleteJob(state, r)); }
    R operator()(const v1::ListWorkersRequest& r) { return Response(ListWorkers(state, r)); }
    R operator()(const v1::GetWorkerRequest& r) { return Response(GetWorker(state, r)); }
    R operator()(const v1::CordonWorkerRequest& r) { return Response(CordonWorker(state, r)); }
    R operator()(const v1::DrainWorkerRequest& r) { return Response(DrainWorker(state, r)); }
    R operator()(const v1::UncordonWorkerRequest& r) { return Response(UncordonWorker(state, r)); }
    R operator()(const v1::ListCheckpointsRequest& r) {
      return Response(ListCheckpoints(state, r));
    }
    R operator()(const v1::GetCheckpointRequest& r) { return Response(GetCheckpoint(state, r)); }
    R operator()(const v1::ImportCheckpointRequest& r) {
      return Response(ImportCheckpoint(state, r, request.manifest));
    }
    R operator()(const v1::CreateQueueRequest& r) { return Response(CreateQueue(state, r)); }
    R operator()(const v1::GetQueueRequest& r) { return Response(GetQueue(state, r)); }
    R operator()(const v1::ListQueuesRequest& r) { return Response(ListQueues(state, r)); }
    R operator()(const v1::UpdateQueueRequest& r) { return Response(UpdateQueue(state, r)); }
    R operator()(const v1::DeleteQueueRequest& r) { return Response(DeleteQueue(state, r)); }
  };
  return std::visit(Visitor{state, request}, request.message);
}

// Nothing may be due for long. But a caller that does not come when nothing was due cannot be told
// from one that stood still.
absl::Time NextTickOf(const State& state) {
  return std::min(state.timers.Next(), state.called + state.options.heartbeat_interval);
}

// A process that stood still (suspended, starved) heard nobody meanwhile: that is no silence of the
// workers. And not all that they have said since may have reached its queue: what is due waits a
// little, but not each time, or one that is always late (a slow disk) would never give anybody up.
void ForgiveLateness(State& state, absl::Time now) {
  const absl::Duration late = now - (state.called + state.options.heartbeat_interval);
  state.called = now;
  if (late < state.options.suspect_grace) return;
  for (auto& [name, worker] : state.workers) {
    if (worker.lost) continue;
    worker.last_contact += late;
    worker.detached += late;
  }
  absl::Time earliest = absl::InfinitePast();
  if (now >= state.waited + 2 * state.options.lease_ttl) {
    state.waited = now;
    earliest = now + state.options.suspect_grace;
    // Nor does a job answer for it; but one of a coordinator that is always late runs all the same.
    for (const auto& [age, job] : state.unfinished) job->run_counted += late;
  }
  // The others wait for nobody's word.
  state.timers.Postpone({TimerKind::kSuspect, TimerKind::kStage, TimerKind::kRejoin}, late,
                        earliest);
}

void OnTimer(State& state, const Timers::Key& timer) {
  Job* job = state.FindJob(timer.subject);
  Worker* worker = state.FindWorker(timer.subject);
  switch (timer.kind) {
    case TimerKind::kLease:
      if (worker != nullptr) OnLeaseTimer(state, *worker);
      return;
    case TimerKind::kSuspect:
      if (worker != nullptr) OnSuspectTimer(state, *worker);
      return;
    case TimerKind::kForgetWorker:
      if (worker != nullptr && worker->lost && !state.IsCordoned(*worker)) {
        state.workers.erase(timer.subject);
      }
      return;
    case TimerKind::kStage:
      if (job == nullptr) return;
      // One or the other: the first begins an abort, which has a time-out of its own.
      if (job->record.stage() == store::RING_STAGE_FORMING) {
        OnFormTimeout(state, *job);
      } else if (job->record.stage() == store::RING_STAGE_ABORTING) {
        OnAbortTimeout(state, *job);
      }
      return;
    case TimerKind::kRejoin:
      if (job != nullptr) OnRejoinTimeout(state, *job);
      return;
    case TimerKind::kRetry:
    case TimerKind::kMakeRoom:
      state.placement_due = true;
      return;
    case TimerKind::kExplain:
      state.placement_due = state.explanation_due = true;
      return;
    case TimerKind::kForgive:
      if (job != nullptr) OnForgiveTimer(state, *job);
      return;
    case TimerKind::kStopAgain:
      if (job != nullptr) StopIfAsked(state, *job);
      return;
    case TimerKind::kRunClock:
      if (job != nullptr) OnRunClock(state, *job);
      return;
    case TimerKind::kForgetRequest:
      if (state.store_full) {
        // It can wait, and a commit that failed would make it due again at once.
        state.timers.Set(TimerKind::kForgetRequest, timer.subject,
                         state.now + state.options.progress_store_interval);
        return;
      }
      state.requests.erase(timer.subject);
      Erase(state, Table::kRequests, timer.subject);
      return;
  }
}

// Replies tell of what came after them, too: where in the queue a new job waits, and for what.
void RefreshReplies(State& state) {
  for (Reply& reply : state.out.replies) {
    if (!reply.response.ok()) continue;
    if (auto* job = std::get_if<v1::TrainingJob>(&*reply.response)) {
      const Job* now = state.FindJob(job->name());
      if (now != nullptr && now->uid() == job->uid()) *job = now->record.job();
    } else if (auto* queue = std::get_if<v1::Queue>(&*reply.response)) {
      Refresh(state, *queue);
    }
  }
}

Output Finish(State& state) {
  RunPlacer(state);
  RefreshReplies(state);
  return TakeOutput(state);
}

void HandleOne(State& state, const Event& event) {
  struct Visitor {
    State& state;
    void operator()(const ApiRequest& request) {
      absl::StatusOr<ApiResponse> response = Answer(state, request);
      state.out.replies.push_back({request.call, std::move(response)});
    }
    void operator()(const WorkerReported& reported) {
      OnReport(state, reported.stream, reported.report);
    }
    void operator()(const StreamClosed& closed) {
      if (!state.draining) OnStreamClosed(state, closed.stream);
    }
    void operator()(const WorkerExited& exited) {
      auto response = Response(OnWorkerExited(state, exited.request));
      state.out.replies.push_back({exited.call, std::move(response)});
    }
    void operator()(const DrainRequested&) { state.draining = true; }
  };
  std::visit(Visitor{state}, event);
}

void RunTimers(State& state) {
  // The next coordinator begins with fresh time-outs.
  if (state.draining) return;
  while (const auto timer = state.timers.TakeDue(state.now)) OnTimer(state, *timer);
}

absl::StatusOr<std::unique_ptr<State>> NewState(CoreOptions options, const StoredState& stored,
                                                int64_t epoch, absl::Time now, IdSource ids) {
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  state->epoch = epoch;
  state->ids = ids;
  state->now = now;
  const absl::Status loaded = LoadStored(*state, stored);
  if (!loaded.ok()) return loaded;
  state->called = now;
  return state;
}

}  // namespace

Core::Core(std::unique_ptr<State> state) : state_(std::move(state)) {}
Core::~Core() = default;

absl::StatusOr<std::unique_ptr<Core>> Core::Create(CoreOptions options, const StoredState& stored,
                                                   int64_t epoch, absl::Time now, uint64_t seed) {
  const IdSource ids(seed ^ (static_cast<uint64_t>(epoch) << 32));
  auto state = NewState(std::move(options), stored, epoch, now, ids);
  if (!state.ok()) return state.status();
  return std::unique_ptr<Core>(new Core(*std::move(state)));
}

Output Core::Handle(absl::Time now, absl::Span<const Event* const> events) {
  State& state = *state_;
  ForgiveLateness(state, now);
  state.now = now;
  for (const Event* event : events) HandleOne(state, *event);
  return Finish(state);
}

Output Core::Tick(absl::Time now) {
  State& state = *state_;
  ForgiveLateness(state, now);
  state.now = now;
  RunTimers(state);
  return Finish(state);
}

absl::Time Core::NextTick() const {
  return state_->draining ? absl::InfiniteFuture() : NextTickOf(*state_);
}

absl::StatusOr<Output> Core::Reload(absl::Time now, const StoredState& stored) {
  auto state = NewState(state_->options, stored, state_->epoch, now, state_->ids);
  if (!state.ok()) return state.status();
  (*state)->draining = state_->draining;
  (*state)->store_full = true;
  (*state)->counters = state_->counters;
  (*state)->changes = state_->changes;
  for (const auto& [stream, worker] : state_->streams) {
    EndStream(**state, stream, Unavailable("STORE_RELOADED", "attach again", absl::ZeroDuration()));
  }
  state_ = *std::move(state);
  // Watchers were told nothing of what was rolled back, but read the memory: show it again.
  for (const auto& [age, job] : state_->unfinished) Show(*state_, *job);
  state_->placement_due = false;
  Output output = TakeOutput(*state_);
  state_->placement_due = true;
  return output;
}

Output Core::SetStoreFull(absl::Time now, bool full) {
  State& state = *state_;
  ForgiveLateness(state, now);
  state.now = now;
  const bool room_again = state.store_full && !full;
  state.store_full = full;
  if (room_again) {
    state.placement_due = true;
    for (const auto& [age, job] : JobsByAge(state.unfinished)) {
      CommitComplete(state, *job);
      CompleteIfFinished(state, *job);
      // Whatever it was to stop for waited for room as well.
      CountRunTime(state, *job);
      StopIfAsked(state, *job);
    }
  }
  return Finish(state);
}

const v1::TrainingJob* Core::FindJob(absl::string_view name) const {
  const Job* job = state_->FindJob(name);
  return job == nullptr ? nullptr : &job->record.job();
}

std::vector<const v1::TrainingJob*> Core::Jobs(absl::string_view parent) const {
  const bool all = parent == "projects/-";
  const std::string prefix = absl::StrCat(parent.empty() ? "projects/default" : parent, "/");
  std::vector<const v1::TrainingJob*> jobs;
  for (const auto& [age, job] : state_->jobs_by_age) {
    if (all || job->name().rfind(prefix, 0) == 0) jobs.push_back(&job->record.job());
  }
  return jobs;
}

int64_t Core::resource_version() const { return (state_->epoch << 32) + state_->changes; }

CoreSnapshot Core::Snapshot(absl::Time now) const {
  const State& state = *state_;
  CoreSnapshot snapshot;
  snapshot.epoch = state.epoch;
  snapshot.draining = state.draining;
  snapshot.store_full = state.store_full;
  const auto list = [&](const Job& job, std::vector<v1::TrainingJob>& jobs) {
    jobs.push_back(job.record.job());
    const auto newest = state.checkpoints.find(job.status().last_checkpoint());
    if (newest != state.checkpoints.end()) {
      snapshot.checkpoint_times[job.name()] = FromProto(newest->second.checkpoint().create_time());
    }
  };
  for (const auto& [age, job] : state.jobs_by_age) {
    ++snapshot.jobs[job->status().state()];
    if (job->status().state() == v1::TrainingJobStatus::QUEUED) {
      const absl::Duration wait = now - FromProto(job->record.job().update_time());
      snapshot.longest_queue_wait = std::max(snapshot.longest_queue_wait, wait);
    }
    // Unset is 1970.
    const absl::Time end = FromProto(job->record.job().end_time());
    if (job->generation() > 0 && now - end < CoreSnapshot::kShownAfterEnd) {
      list(*job, snapshot.ended_jobs);
    }
  }
  for (const auto& [name, worker] : state.workers) {
    ++snapshot.workers[StateOf(state, worker)];
    if (!worker.lost && !worker.unseen) {
      snapshot.heartbeat_ages.push_back(now - worker.last_contact);
    }
  }
  snapshot.cordoned_workers = static_cast<int64_t>(state.cordons.size());
  std::sort(snapshot.heartbeat_ages.begin(), snapshot.heartbeat_ages.end());
  snapshot.queue_length = static_cast<int64_t>(state.queue.size());
  for (const auto& [key, job] : state.queue) {
    ++snapshot.waiting[job->status().pending_reason().code()];
  }
  for (const auto& [id, queue] : state.queues) {
    snapshot.queues[id] = {.pending_jobs = static_cast<int64_t>(queue.waiting.size()),
                           .admitted_jobs = queue.admitted,
                           .held_workers = queue.held,
                           .max_workers = queue.record.queue().max_workers()};
  }
  snapshot.unfinished_jobs = static_cast<int64_t>(state.unfinished.size());
  for (const auto& [age, job] : state.unfinished) {
    const bool listed = snapshot.active_jobs.size() < CoreSnapshot::kListedJobs;
    const bool paused = job->status().state() == v1::TrainingJobStatus::PAUSED;
    if (listed || (job->generation() > 0 && !paused)) list(*job, snapshot.active_jobs);
  }
  snapshot.counters = state.counters;
  return snapshot;
}

}  // namespace ringmaster::coordinator
