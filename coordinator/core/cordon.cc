#include "coordinator/core/cordon.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/pause.h"
#include "coordinator/core/times.h"
#include "coordinator/core/workers.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kReasonMax = 256;

absl::Status CheckReason(const std::string& reason) {
  if (reason.size() > kReasonMax) {
    return InvalidField("reason", absl::StrFormat("has %d bytes; at most %d are possible",
                                                  reason.size(), kReasonMax));
  }
  if (std::any_of(reason.begin(), reason.end(), absl::ascii_iscntrl)) {
    return InvalidField("reason", "has control characters");
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Worker> Cordon(State& state, const std::string& name, const std::string& reason,
                                  bool drain) {
  ASSIGN_OR_RETURN(const Worker* worker, NamedWorker(state, name));
  RETURN_IF_ERROR(CheckReason(reason));
  RETURN_IF_ERROR(Refusal(state));
  store::CordonRecord& record = state.cordons[name];
  v1::Cordon* cordon = record.mutable_cordon();
  if (!cordon->has_cordon_time()) *cordon->mutable_cordon_time() = ToProto(state.now);
  if (!reason.empty()) cordon->set_reason(reason);
  cordon->set_drain(cordon->drain() || drain);
  Put(state, Table::kCordons, name, record);
  state.placement_due = true;
  Job* job = state.FindJob(worker->job);
  if (job != nullptr) StopIfAsked(state, *job);
  return ToProtoWorker(state, *worker);
}

}  // namespace

absl::StatusOr<v1::Worker> CordonWorker(State& state, const v1::CordonWorkerRequest& request) {
  return Cordon(state, request.name(), request.reason(), /*drain=*/false);
}

absl::StatusOr<v1::Worker> DrainWorker(State& state, const v1::DrainWorkerRequest& request) {
  return Cordon(state, request.name(), request.reason(), /*drain=*/true);
}

absl::StatusOr<v1::Worker> UncordonWorker(State& state, const v1::UncordonWorkerRequest& request) {
  ASSIGN_OR_RETURN(const Worker* worker, NamedWorker(state, request.name()));
  RETURN_IF_ERROR(Refusal(state));
  if (state.cordons.erase(request.name()) > 0) {
    Erase(state, Table::kCordons, request.name());
    state.placement_due = true;
    if (worker->lost) {
      state.timers.Set(TimerKind::kForgetWorker, worker->name,
                       state.now + state.options.lost_worker_retention);
    }
  }
  return ToProtoWorker(state, *worker);
}

bool LeavesRing(State& state, const Job& job, int rank) {
  if (!state.IsCordoned(*state.Member(job, rank))) return false;
  // By whether they have a cordon.
  int64_t newest[2] = {-1, -1};
  for (int other = 0; other < job.status().ranks_size(); ++other) {
    const Worker* worker = state.Member(job, other);
    const v1::HeldState& held = job.ranks[other].held;
    if (worker == nullptr || !worker->attached() || !held.present() || !held.clean()) continue;
    int64_t& step = newest[state.IsCordoned(*worker) ? 1 : 0];
    step = std::max(step, held.step());
  }
  return newest[1] <= newest[0] || IsCommitted(state, job, newest[1]);
}

std::string DrainOf(const State& state, const Job& job) {
  for (const v1::RankAssignment& rank : job.status().ranks()) {
    const auto found = state.cordons.find(rank.worker());
    if (found == state.cordons.end() || !found->second.cordon().drain()) continue;
    const std::string& reason = found->second.cordon().reason();
    return absl::StrCat(rank.worker(), " is drained", reason.empty() ? "" : ": ", reason);
  }
  return "";
}

}  // namespace ringmaster::coordinator
