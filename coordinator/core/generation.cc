#include "coordinator/core/generation.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/episodes.h"
#include "coordinator/core/faults.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/restore_plan.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

void TellForm(State& state, const Job& job, int rank, const Worker& worker) {
  v1::Directive directive;
  v1::FormRing* form = directive.mutable_form_ring();
  *form->mutable_ring() = RefOf(job, rank);
  *form->mutable_spec() = job.spec();
  form->set_directory(job.spec().directory());
  *form->mutable_ranks() = job.status().ranks();
  form->set_transport(job.record.transport());
  Tell(state, worker, std::move(directive));
}

void TellConnect(State& state, const Job& job, int rank, const Worker& worker) {
  v1::Directive directive;
  v1::ConnectRing* connect = directive.mutable_connect_ring();
  *connect->mutable_ring() = RefOf(job, rank);
  for (const RankState& peer : job.ranks) connect->add_transport_addresses(peer.address);
  *connect->mutable_restore() = job.plan;
  Tell(state, worker, std::move(directive));
}

void TellStart(State& state, const Job& job, int rank, const Worker& worker) {
  v1::Directive directive;
  *directive.mutable_start_steps()->mutable_ring() = RefOf(job, rank);
  if (rank == 0) {
    v1::ExistingCheckpoints* existing =
        directive.mutable_start_steps()->mutable_existing_checkpoints();
    for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
      v1::ExistingCheckpoints::Entry* entry = existing->add_entries();
      entry->set_step(checkpoint->step());
      entry->set_generation(checkpoint->generation());
    }
  }
  Tell(state, worker, std::move(directive));
  if (job.status().state() == v1::TrainingJobStatus::PAUSING) TellFinish(state, job, rank, worker);
  if (rank == 0) TellCheckpoints(state, job, worker);
}

// Sends one directive to every member.
template <typename TellOne>
void TellAll(State& state, const Job& job, TellOne tell_one) {
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    if (worker != nullptr) tell_one(state, job, rank, *worker);
  }
}

bool All(const Job& job, bool RankState::*flag) {
  return std::all_of(job.ranks.begin(), job.ranks.end(),
                     [flag](const RankState& rank) { return rank.*flag; });
}

// Every rank has joined: decides what each restores, and lets them connect.
void Connect(State& state, Job& job) {
  RestoreSources sources;
  bool in_memory = false;
  for (const RankState& rank : job.ranks) {
    sources.held.push_back(rank.held);
    in_memory = in_memory || (rank.held.present() && rank.held.clean());
  }
  bool lost = false;
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    if (IsTrusted(job, *checkpoint) && !(checkpoint->set_aside() && in_memory)) {
      sources.checkpoints.push_back(*checkpoint);
    } else {
      lost = true;
    }
  }
  if (job.record.has_start()) {
    const bool resumes = job.spec().start_from_case() == v1::TrainingJobSpec::kResumeFrom;
    const bool trusted = IsTrusted(job, job.record.start());
    (resumes ? sources.resume : sources.init) = trusted ? &job.record.start() : nullptr;
    lost = lost || !trusted;
  }
  job.plan = PlanRestore(sources);
  if (lost && job.plan.source() == v1::RecoveryEpisode::FRESH) {
    Fail(state, job, v1::CHECKPOINT_LOST,
         "no worker holds the job's state any more, and no checkpoint of it can be restored");
    return;
  }
  job.connecting = true;
  state.timers.Set(TimerKind::kStage, job.name(), state.now + state.options.ready_timeout);
  TellAll(state, job, TellConnect);
}

// Empty when all ranks hold the same clean state, of the step that was planned.
std::string Disagreement(const Job& job) {
  const v1::HeldState& first = job.ranks.front().held;
  for (size_t rank = 0; rank < job.ranks.size(); ++rank) {
    const v1::HeldState& held = job.ranks[rank].held;
    if (!held.present() || !held.clean()) return absl::StrCat("rank ", rank, " is not clean");
    if (held.step() != job.plan.step()) {
      return absl::StrFormat("rank %d restored step %d, not %d", rank, held.step(),
                             job.plan.step());
    }
    if (held.digest() != first.digest()) {
      return absl::StrFormat("rank %d holds %016x, rank 0 %016x", rank, held.digest(),
                             first.digest());
    }
  }
  return "";
}

void StartIfReady(State& state, Job& job) {
  if (job.adopting || !job.connecting || !All(job, &RankState::ready)) return;
  const std::string disagreement = Disagreement(job);
  if (!disagreement.empty()) {
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::DIVERGED,
                .message = absl::StrFormat("after restoring step %d the ranks do not agree: %s",
                                           job.plan.step(), disagreement)});
    return;
  }
  int64_t restore_ms = 0;
  for (const RankState& rank : job.ranks) restore_ms = std::max(restore_ms, rank.restore_ms);
  ++state.counters.rings_formed;
  MarkFormed(state, job, job.plan.step(), restore_ms);
  job.SetStep(job.plan.step());
  v1::Progress* progress = job.mutable_status()->mutable_progress();
  progress->clear_tokens_per_second();
  progress->clear_remaining();
  job.pace.clear();
  job.last_step = state.now;
  SetAsideAfter(state, job, job.plan);
  job.record.set_stage(store::RING_STAGE_STARTED);
  state.timers.Cancel(TimerKind::kStage, job.name());
  DelayStop(state, job);
  const std::string stops = ReasonToStop(state, job);
  // Whom it was to stop for, when it broke, no longer waits.
  if (stops.empty()) job.preempted_by.clear();
  SetState(state, job,
           stops.empty() ? v1::TrainingJobStatus::RUNNING : v1::TrainingJobStatus::PAUSING, stops);
  TellAll(state, job, TellStart);
  TellGarbage(state, job);
}

// Every member of a generation that formed when the coordinator ended was heard of, or is gone.
void DecideAdoption(State& state, Job& job) {
  bool ready = true;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    const Worker* worker = state.Member(job, rank);
    if (worker != nullptr && worker->unseen) return;
    ready = ready && worker != nullptr && job.ranks[rank].phase == v1::PHASE_READY;
  }
  job.adopting = false;
  if (!ready) {
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::COORDINATOR_RESTART,
                .message = "the coordinator restarted while the ring formed"});
    return;
  }
  job.connecting = true;
  job.plan.set_step(job.ranks.front().held.step());
  StartIfReady(state, job);
}

void ResyncForming(State& state, Job& job, int rank, const v1::Hello& hello, bool current) {
  const Worker& worker = *state.Member(job, rank);
  if (job.adopting) {
    job.ranks[rank].phase = current ? hello.phase() : v1::PHASE_IDLE;
    if (hello.phase() == v1::PHASE_READY) job.ranks[rank].held = hello.state();
    DecideAdoption(state, job);
  } else if (!current) {
    TellForm(state, job, rank, worker);
  } else if (hello.phase() == v1::PHASE_JOINING && job.connecting) {
    TellConnect(state, job, rank, worker);
  }
}

void ResyncStarted(State& state, Job& job, int rank, const v1::Hello& hello, bool current) {
  const Worker& worker = *state.Member(job, rank);
  const bool lost =
      !current || hello.phase() == v1::PHASE_JOINING || hello.phase() == v1::PHASE_CONNECTING;
  if (lost) {
    GiveUpRing(state, job,
               {.cause = v1::RecoveryEpisode::COMMUNICATION,
                .message = absl::StrFormat("%s (rank %d) is no longer in the running ring",
                                           worker.name, rank)});
  } else if (hello.phase() == v1::PHASE_READY) {
    TellStart(state, job, rank, worker);
  } else if (hello.phase() == v1::PHASE_RUNNING &&
             job.status().state() == v1::TrainingJobStatus::PAUSING) {
    TellFinish(state, job, rank, worker);
  }
  if (rank == 0) job.garbage_told = 0;
}

}  // namespace

void BeginGeneration(State& state, Job& job, const std::vector<Worker*>& members) {
  std::set<std::string> before;
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) {
    Worker* worker = state.Member(job, rank);
    if (worker == nullptr) continue;
    before.insert(worker->name);
    // A member that is not in the next generation and not there hears so when it re-attaches.
    if (std::find(members.begin(), members.end(), worker) == members.end()) {
      TellRelease(state, *worker, job.name(), job.uid(), job.generation(),
                  "the job goes on without this worker");
      state.placement_due = true;
    }
    worker->job.clear();
  }
  // What was freed for it and is not among its members is for anybody.
  if (state.options.preemption) {
    for (auto& [name, worker] : state.workers) {
      if (worker.freed_for == job.uid()) worker.freed_for.clear();
    }
  }
  v1::TrainingJobStatus* status = job.mutable_status();
  if (status->generation() == 0) {
    state.out.queue_waits.push_back(state.now - FromProto(job.record.job().update_time()));
  }
  status->set_generation(status->generation() + 1);
  status->clear_ranks();
  job.ranks.assign(members.size(), {});
  job.adopting = job.waiting = job.connecting = false;
  job.plan.Clear();
  job.garbage_told = 0;
  job.record.set_stage(store::RING_STAGE_FORMING);
  for (size_t i = 0; i < members.size(); ++i) {
    Worker& worker = *members[i];
    worker.job = job.name();
    worker.freed_for.clear();
    worker.rank = static_cast<int>(i);
    v1::RankAssignment* rank = status->add_ranks();
    rank->set_rank(worker.rank);
    rank->set_worker(worker.name);
    rank->set_incarnation(worker.incarnation);
    rank->set_host(worker.hardware.host());
    if (before.count(worker.name) == 0) AddJoinedWorker(job, worker.name);
  }
  state.timers.Cancel(TimerKind::kRejoin, job.name());
  state.timers.Set(TimerKind::kStage, job.name(), state.now + state.options.join_timeout);
  status->clear_pending_reason();
  if (status->state() == v1::TrainingJobStatus::QUEUED) {
    SetState(state, job, v1::TrainingJobStatus::STARTING, "");
  }
  Store(state, job);
  TellAll(state, job, TellForm);
}

void OnRingJoin(State& state, Job& job, int rank, const v1::RingJoin& join) {
  if (job.record.stage() != store::RING_STAGE_FORMING || job.connecting || job.adopting) return;
  RankState& joined = job.ranks[rank];
  joined.joined = true;
  joined.address = join.transport_address();
  joined.held = join.state();
  if (All(job, &RankState::joined)) Connect(state, job);
}

void OnRingReady(State& state, Job& job, int rank, const v1::RingReady& ready) {
  if (job.record.stage() != store::RING_STAGE_FORMING) return;
  // Before ConnectRing nobody can have restored anything.
  if (!job.connecting && !job.adopting) return;
  job.ranks[rank].ready = true;
  job.ranks[rank].held = ready.state();
  job.ranks[rank].restore_ms = ready.restore_ms();
  StartIfReady(state, job);
}

void OnRingFinished(State& state, Job& job, int rank, const v1::RingFinished& finished) {
  if (job.record.stage() != store::RING_STAGE_STARTED) return;
  job.ranks[rank].finished = true;
  job.ranks[rank].held = finished.state();
  job.ranks[rank].checkpoint_error = finished.checkpoint_error();
  CompleteIfFinished(state, job);
}

void CompleteIfFinished(State& state, Job& job) {
  if (job.record.stage() != store::RING_STAGE_STARTED || !All(job, &RankState::finished)) return;
  if (IsCommitted(state, job, job.spec().steps())) {
    Succeed(state, job);
    return;
  }
  if (job.status().state() == v1::TrainingJobStatus::PAUSING &&
      job.ranks.front().held.step() < job.spec().steps()) {
    return CompletePause(state, job);
  }
  for (const RankState& rank : job.ranks) {
    if (rank.checkpoint_error.empty()) continue;
    const std::string& last = job.status().last_checkpoint();
    Fail(state, job, v1::CHECKPOINT_LOST,
         absl::StrFormat("all %d steps are done, but the last checkpoint could not be written: %s; "
                         "the newest one is %s",
                         job.spec().steps(), rank.checkpoint_error, last.empty() ? "none" : last));
    return;
  }
  // The commit waits for room in the store.
  if (state.store_full) return;
  GiveUpRing(state, job,
             {.cause = v1::RecoveryEpisode::COMMUNICATION,
              .message = "the reports of the last checkpoint's shards were lost"});
}

void ResyncMember(State& state, Job& job, int rank, const v1::Hello& hello) {
  const bool current =
      hello.ring().training_job_uid() == job.uid() && hello.ring().generation() == job.generation();
  switch (job.record.stage()) {
    case store::RING_STAGE_FORMING:
      return ResyncForming(state, job, rank, hello, current);
    case store::RING_STAGE_STARTED:
      return ResyncStarted(state, job, rank, hello, current);
    case store::RING_STAGE_ABORTING:
      if (!job.ranks[rank].aborted) {
        TellAbort(state, job, rank, *state.Member(job, rank), job.status().state_reason());
        state.timers.Set(TimerKind::kStage, job.name(), state.now + state.options.join_timeout);
      }
      return;
    default:
      return;
  }
}

void OnFormTimeout(State& state, Job& job) {
  std::vector<std::string> late;
  for (size_t rank = 0; rank < job.ranks.size(); ++rank) {
    const bool answered = job.connecting ? job.ranks[rank].ready : job.ranks[rank].joined;
    if (!answered) {
      late.push_back(absl::StrFormat("%s (rank %d)", job.status().ranks(rank).worker(), rank));
    }
  }
  const absl::Duration limit =
      job.connecting ? state.options.ready_timeout : state.options.join_timeout;
  GiveUpRing(state, job,
             {.cause = v1::RecoveryEpisode::FORM_FAILED,
              .message = absl::StrFormat("ring generation %d: %s did not %s within %s",
                                         job.generation(), absl::StrJoin(late, ", "),
                                         job.connecting ? "connect and restore" : "join",
                                         absl::FormatDuration(limit))});
}

}  // namespace ringmaster::coordinator
