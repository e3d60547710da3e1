#include "coordinator/core/workers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/pages.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/times.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr char kWorkerPrefix[] = "workers/";
constexpr size_t kDeadIncarnationsKept = 16;

bool IsWorkerName(absl::string_view name) {
  return absl::StartsWith(name, kWorkerPrefix) &&
         IsWorkerId(name.substr(sizeof(kWorkerPrefix) - 1));
}

bool IsIncarnation(const std::string& text) {
  return text.size() == 32 &&
         std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isxdigit(c); });
}

constexpr char kReplaced[] = "WORKER_REPLACED";

bool IsDead(const Worker& worker, const std::string& incarnation) {
  return std::find(worker.dead_incarnations.begin(), worker.dead_incarnations.end(), incarnation) !=
         worker.dead_incarnations.end();
}

// Another process asks for the name of one that may well be alive: a --worker-id given twice, or a
// pod that a partition hid. That proves no death; the next child of its supervisor does, or the
// supervisor's report, and a broken stream or the lease are taken for it. Of a member that was not
// heard of since the coordinator started, a fresh process is the successor, and one that has heard
// of an epoch is not: the member joined after it, or it would have lost its rank to it.
bool IsTaken(const Worker& worker, const v1::WorkerReport& report) {
  if (worker.incarnation == report.incarnation()) return false;
  const std::string& supervisor = report.hello().supervisor();
  if (!supervisor.empty() && supervisor == worker.supervisor) return false;
  return worker.attached() || (worker.unseen && report.epoch() > 0);
}

// This process is dead, or must be. Its ring is given up.
void Lose(State& state, Worker& worker, RingLoss loss, bool tell_die) {
  if (worker.lost) return;
  if (worker.stream != 0) {
    if (tell_die) TellDie(state, worker.stream, kReplaced, loss.message);
    state.streams.erase(worker.stream);
    worker.stream = 0;
  }
  worker.lost = true;
  worker.unseen = false;
  worker.unresponsive = false;
  worker.dead_incarnations.push_back(worker.incarnation);
  if (worker.dead_incarnations.size() > kDeadIncarnationsKept) worker.dead_incarnations.pop_front();
  state.timers.Cancel(TimerKind::kLease, worker.name);
  state.timers.Cancel(TimerKind::kSuspect, worker.name);
  state.timers.Set(TimerKind::kForgetWorker, worker.name,
                   state.now + state.options.lost_worker_retention);
  state.placement_due = true;
  Job* job = state.FindJob(worker.job);
  if (job == nullptr) return;
  DropMember(*job, worker);
  loss.lost_workers = {worker.name};
  GiveUpRing(state, *job, loss);
}

void TellWelcome(State& state, const Worker& worker) {
  v1::Directive directive;
  *directive.mutable_welcome()->mutable_lease_ttl() = ToProto(state.options.lease_ttl);
  *directive.mutable_welcome()->mutable_heartbeat_interval() =
      ToProto(state.options.heartbeat_interval);
  Tell(state, worker, std::move(directive));
}

// The entry for this process; a predecessor under the same name is given up first.
Worker& Register(State& state, const v1::WorkerReport& report) {
  const v1::Hello& hello = report.hello();
  Worker& worker = state.workers[hello.worker()];
  if (worker.incarnation != report.incarnation()) {
    if (!worker.incarnation.empty()) {
      Lose(state, worker,
           {.cause = v1::RecoveryEpisode::WORKER_EXIT,
            .message = absl::StrCat(worker.name, " was replaced by a new process")},
           true);
    }
    std::deque<std::string> dead = std::move(worker.dead_incarnations);
    worker = Worker();
    worker.dead_incarnations = std::move(dead);
    worker.name = hello.worker();
    worker.incarnation = report.incarnation();
    worker.register_time = state.now;
    state.timers.Cancel(TimerKind::kForgetWorker, worker.name);
  } else if (worker.stream != 0) {
    state.streams.erase(worker.stream);
    EndStream(state, worker.stream,
              Aborted("STREAM_REPLACED", absl::StrCat(worker.name, " has attached again")));
  }
  worker.hardware = hello.hardware();
  worker.version = hello.version();
  worker.metrics_address = hello.metrics_address();
  worker.supervisor = hello.supervisor();
  return worker;
}

}  // namespace

void TellDie(State& state, uint64_t stream, const std::string& code, const std::string& reason) {
  v1::Directive directive;
  directive.set_epoch(state.epoch);
  directive.mutable_die()->set_reason(reason);
  state.out.directives.push_back({.stream = stream,
                                  .directive = std::move(directive),
                                  .close = true,
                                  .close_status = Aborted(code, reason)});
}

void OnHello(State& state, uint64_t stream, const v1::WorkerReport& report) {
  const v1::Hello& hello = report.hello();
  if (!IsWorkerName(hello.worker()) || !IsIncarnation(report.incarnation())) {
    EndStream(state, stream,
              InvalidField("hello",
                           "needs worker 'workers/{id}' and an incarnation of 32 "
                           "hexadecimal digits"));
    return;
  }
  const Worker* known = state.FindWorker(hello.worker());
  if (known != nullptr && IsDead(*known, report.incarnation())) {
    TellDie(state, stream, kReplaced, "this process was given up or replaced");
    return;
  }
  if (known != nullptr && IsTaken(*known, report)) {
    const std::string there =
        known->unseen ? "is expected back, for it was there before the coordinator's restart"
                      : absl::StrCat("is alive, on host ", known->hardware.host());
    EndStream(
        state, stream,
        Unavailable("WORKER_NAME_TAKEN",
                    absl::StrFormat("another process has the name %s and %s", known->name, there),
                    state.options.heartbeat_interval));
    return;
  }
  Worker& worker = Register(state, report);
  worker.stream = stream;
  worker.unseen = false;
  worker.unresponsive = worker.unresponsive && hello.phase() != v1::PHASE_IDLE;
  state.streams[stream] = worker.name;
  state.timers.Cancel(TimerKind::kSuspect, worker.name);
  RenewLease(state, worker);
  state.placement_due = true;
  TellWelcome(state, worker);
  Job* job = state.FindJob(worker.job);
  if (job != nullptr) {
    ResyncMember(state, *job, worker.rank, hello);
  } else if (!hello.ring().training_job_uid().empty()) {
    TellRelease(state, worker, hello.ring().training_job(), hello.ring().training_job_uid(),
                hello.ring().generation(), "the job goes on without this worker, or has ended");
  }
}

void OnHeartbeat(State& state, Worker& worker, const v1::Heartbeat& heartbeat) {
  v1::Directive directive;
  directive.mutable_heartbeat_ack()->set_sequence(heartbeat.sequence());
  Tell(state, worker, std::move(directive));
  if (worker.unresponsive && heartbeat.phase() == v1::PHASE_IDLE) {
    worker.unresponsive = false;
    state.placement_due = true;
  }
}

void OnGoodbye(State& state, Worker& worker) {
  Lose(state, worker,
       {.cause = v1::RecoveryEpisode::OPERATOR,
        .message = absl::StrCat(worker.name, " left on purpose")},
       false);
}

void OnStreamClosed(State& state, uint64_t stream) {
  const auto found = state.streams.find(stream);
  if (found == state.streams.end()) return;
  Worker& worker = *state.FindWorker(found->second);
  state.streams.erase(found);
  worker.stream = 0;
  worker.detached = state.now;
  state.placement_due = true;
  if (!worker.job.empty()) {
    state.timers.Set(TimerKind::kSuspect, worker.name, state.now + state.options.suspect_grace);
  }
}

void OnSuspectTimer(State& state, Worker& worker) {
  Job* job = state.FindJob(worker.job);
  if (worker.stream != 0 || worker.lost || job == nullptr) return;
  if (job->record.stage() == store::RING_STAGE_ABORTING) {
    CheckAborted(state, *job);
    return;
  }
  const bool steps = job->record.stage() == store::RING_STAGE_STARTED &&
                     job->last_step > state.now - state.options.suspect_grace;
  if (steps) {
    // The ring is alive, so the worker is; only its lease may end that.
    state.timers.Set(TimerKind::kSuspect, worker.name, state.now + state.options.suspect_grace);
    return;
  }
  GiveUpRing(
      state, *job,
      {.cause = v1::RecoveryEpisode::COMMUNICATION,
       .message = absl::StrFormat("%s lost its connection %s ago and the ring does not step",
                                  worker.name, absl::FormatDuration(state.now - worker.detached)),
       .fault_time = worker.detached});
}

absl::StatusOr<v1::ReportFaultResponse> OnWorkerExited(State& state,
                                                       const v1::ReportFaultRequest& request) {
  if (!IsWorkerName(request.worker())) {
    return InvalidField("worker", absl::StrCat("'", request.worker(), "' is not workers/{id}"));
  }
  if (!IsIncarnation(request.incarnation())) {
    return InvalidField("incarnation", "must be 32 hexadecimal digits");
  }
  if (request.end_case() == v1::ReportFaultRequest::END_NOT_SET) {
    return InvalidField("end", "needs a signal or an exit code");
  }
  Worker* worker = state.FindWorker(request.worker());
  if (worker == nullptr || worker->lost || worker->incarnation != request.incarnation()) {
    return v1::ReportFaultResponse();
  }
  const std::string how = request.end_case() == v1::ReportFaultRequest::kSignal
                              ? absl::StrFormat("was ended by signal %d", request.signal())
                              : absl::StrFormat("exited with code %d", request.exit_code());
  Lose(state, *worker,
       {.cause = v1::RecoveryEpisode::WORKER_EXIT,
        .message = absl::StrCat(worker->name, " ", how),
        .fault_time = state.now - FromProto(request.age())},
       false);
  return v1::ReportFaultResponse();
}

void RenewLease(State& state, Worker& worker) {
  const bool armed = worker.last_contact != absl::Time() && !worker.lost;
  worker.last_contact = state.now;
  // The timer is moved only when it fires: a report is to cost nothing.
  if (!armed) {
    state.timers.Set(TimerKind::kLease, worker.name, state.now + state.options.lease_ttl);
  }
}

void OnLeaseTimer(State& state, Worker& worker) {
  if (worker.lost) return;
  const absl::Duration ttl =
      worker.unseen ? state.options.adoption_window : state.options.lease_ttl;
  if (worker.last_contact + ttl > state.now) {
    state.timers.Set(TimerKind::kLease, worker.name, worker.last_contact + ttl);
    return;
  }
  ++state.counters.lease_expirations;
  Lose(
      state, worker,
      {.cause = v1::RecoveryEpisode::LEASE_EXPIRED,
       .message = worker.unseen
                      ? absl::StrFormat("%s did not come back within %s of the coordinator's start",
                                        worker.name, absl::FormatDuration(ttl))
                      : absl::StrFormat("%s was silent for %s", worker.name,
                                        absl::FormatDuration(state.now - worker.last_contact)),
       .fault_time = worker.last_contact},
      true);
}

void AddUnseenWorker(State& state, const Job& job, int rank) {
  const v1::RankAssignment& assigned = job.status().ranks(rank);
  if (assigned.incarnation().empty()) return;
  Worker& worker = state.workers[assigned.worker()];
  worker.name = assigned.worker();
  worker.incarnation = assigned.incarnation();
  worker.hardware.set_host(assigned.host());
  worker.register_time = state.now;
  worker.last_contact = state.now;
  worker.detached = state.now;
  worker.unseen = true;
  worker.job = job.name();
  worker.rank = rank;
  state.timers.Set(TimerKind::kLease, worker.name, state.now + state.options.adoption_window);
}

void AddAbsentWorker(State& state, const std::string& name) {
  const auto [entry, fresh] = state.workers.try_emplace(name);
  if (!fresh) return;
  Worker& worker = entry->second;
  worker.name = name;
  worker.lost = true;
  worker.register_time = worker.last_contact = worker.detached = state.now;
}

v1::Worker::State StateOf(const State& state, const Worker& worker) {
  if (worker.lost) return v1::Worker::LOST;
  if (worker.stream == 0) return v1::Worker::SUSPECT;
  if (worker.job.empty()) return worker.unresponsive ? v1::Worker::RESERVED : v1::Worker::IDLE;
  const auto found = state.jobs.find(worker.job);
  const bool started =
      found != state.jobs.end() && found->second->record.stage() == store::RING_STAGE_STARTED;
  return started ? v1::Worker::ACTIVE : v1::Worker::RESERVED;
}

v1::Worker ToProtoWorker(const State& state, const Worker& worker) {
  v1::Worker proto;
  proto.set_name(worker.name);
  proto.set_incarnation(worker.incarnation);
  proto.set_state(StateOf(state, worker));
  *proto.mutable_hardware() = worker.hardware;
  proto.set_training_job(worker.job);
  const auto found = state.jobs.find(worker.job);
  if (found != state.jobs.end()) {
    proto.set_rank(worker.rank);
    proto.set_generation(found->second->generation());
  }
  *proto.mutable_heartbeat_age() = ToProto(state.now - worker.last_contact);
  *proto.mutable_register_time() = ToProto(worker.register_time);
  proto.set_version(worker.version);
  proto.set_metrics_address(worker.metrics_address);
  const auto cordon = state.cordons.find(worker.name);
  if (cordon != state.cordons.end()) {
    *proto.mutable_cordon() = cordon->second.cordon();
    proto.set_drained(worker.job.empty() && !worker.unresponsive);
  }
  return proto;
}

absl::StatusOr<Worker*> NamedWorker(State& state, const std::string& name) {
  if (!IsWorkerName(name)) {
    return InvalidField("name", absl::StrCat("'", name, "' is not workers/{id}"));
  }
  Worker* worker = state.FindWorker(name);
  if (worker == nullptr) return NotFound("worker", name);
  return worker;
}

absl::StatusOr<v1::Worker> GetWorker(State& state, const v1::GetWorkerRequest& request) {
  ASSIGN_OR_RETURN(const Worker* worker, NamedWorker(state, request.name()));
  return ToProtoWorker(state, *worker);
}

absl::StatusOr<v1::ListWorkersResponse> ListWorkers(State& state,
                                                    const v1::ListWorkersRequest& request) {
  ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  v1::ListWorkersRequest bound = request;
  bound.clear_page_size();
  bound.clear_page_token();
  ASSIGN_OR_RETURN(const std::string after, ParsePageToken(bound, request.page_token()));
  v1::ListWorkersResponse response;
  for (auto it = state.workers.upper_bound(after); it != state.workers.end(); ++it) {
    if (response.workers_size() == size) {
      response.set_next_page_token(MakePageToken(bound, response.workers().rbegin()->name()));
      break;
    }
    *response.add_workers() = ToProtoWorker(state, it->second);
  }
  return response;
}

}  // namespace ringmaster::coordinator
