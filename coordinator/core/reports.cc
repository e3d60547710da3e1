#include "coordinator/core/reports.h"

#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "coordinator/core/checkpoints.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/recovery.h"
#include "coordinator/core/workers.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

// The ring that a report is about; empty when it is about none.
const v1::RingRef& RingOf(const v1::WorkerReport& report) {
  switch (report.report_case()) {
    case v1::WorkerReport::kHeartbeat:
      return report.heartbeat().ring();
    case v1::WorkerReport::kRingJoin:
      return report.ring_join().ring();
    case v1::WorkerReport::kRingReady:
      return report.ring_ready().ring();
    case v1::WorkerReport::kRingAborted:
      return report.ring_aborted().ring();
    case v1::WorkerReport::kStepsDone:
      return report.steps_done().ring();
    case v1::WorkerReport::kShardWritten:
      return report.shard_written().ring();
    case v1::WorkerReport::kRingFinished:
      return report.ring_finished().ring();
    case v1::WorkerReport::kFault:
      return report.fault().ring();
    default:
      return v1::RingRef::default_instance();
  }
}

void Apply(State& state, Job& job, int rank, const v1::WorkerReport& report) {
  switch (report.report_case()) {
    case v1::WorkerReport::kRingJoin:
      return OnRingJoin(state, job, rank, report.ring_join());
    case v1::WorkerReport::kRingReady:
      return OnRingReady(state, job, rank, report.ring_ready());
    case v1::WorkerReport::kRingAborted:
      return OnRingAborted(state, job, rank, report.ring_aborted());
    case v1::WorkerReport::kStepsDone:
      if (rank == 0) OnStepsDone(state, job, report.steps_done());
      return;
    case v1::WorkerReport::kShardWritten:
      return OnShardWritten(state, job, rank, report.shard_written());
    case v1::WorkerReport::kRingFinished:
      return OnRingFinished(state, job, rank, report.ring_finished());
    case v1::WorkerReport::kFault:
      return OnFault(state, job, rank, report.fault());
    default:
      return;
  }
}

// The process may have state and commands of a life that this coordinator knows nothing of. The
// directive, though the worker does not obey a lower epoch, tells it that it must be replaced.
void RefuseLaterEpoch(State& state, uint64_t stream, int64_t heard) {
  const std::string reason = absl::StrFormat(
      "this coordinator's epoch is %d, the worker has heard of %d", state.epoch, heard);
  TellDie(state, stream, "STALE_COORDINATOR", reason);
}

void RefuseStale(State& state, const Worker& worker, const v1::RingRef& ring,
                 const v1::WorkerReport& report) {
  if (report.report_case() != v1::WorkerReport::kHeartbeat) {
    const auto* field = v1::WorkerReport::descriptor()->FindFieldByNumber(report.report_case());
    ++state.counters.stale_reports[field->name()];
  }
  Job* job = state.FindJobByUid(ring.training_job_uid());
  if (job != nullptr && report.report_case() == v1::WorkerReport::kShardWritten) {
    DiscardStaleShard(state, *job, report.shard_written());
  }
  // A member of this job was told of the current generation on this very stream.
  if (job != nullptr && worker.job == job->name()) return;
  // It answers a release; there is nothing left to release.
  if (report.report_case() == v1::WorkerReport::kRingAborted) return;
  TellRelease(state, worker, ring.training_job(), ring.training_job_uid(), ring.generation(),
              "the job goes on without this worker, or has ended");
}

}  // namespace

void OnReport(State& state, uint64_t stream, const v1::WorkerReport& report) {
  if (report.epoch() > state.epoch) {
    return RefuseLaterEpoch(state, stream, report.epoch());
  }
  if (report.report_case() == v1::WorkerReport::kHello) return OnHello(state, stream, report);
  const auto attached = state.streams.find(stream);
  if (attached == state.streams.end()) {
    EndStream(state, stream,
              FailedPrecondition("NO_HELLO", "session", "the first report must be Hello"));
    return;
  }
  Worker& worker = *state.FindWorker(attached->second);
  if (report.incarnation() != worker.incarnation) {
    EndStream(state, stream, InvalidField("incarnation", "differs from that of the Hello"));
    return;
  }
  RenewLease(state, worker);
  if (report.report_case() == v1::WorkerReport::kGoodbye) return OnGoodbye(state, worker);
  if (report.report_case() == v1::WorkerReport::kHeartbeat) {
    OnHeartbeat(state, worker, report.heartbeat());
  }
  if (report.report_case() == v1::WorkerReport::kFilesDeleted) {
    Job* job = state.FindJobByUid(report.files_deleted().ring().training_job_uid());
    if (job != nullptr) OnFilesDeleted(state, *job, report.files_deleted());
    return;
  }
  const v1::RingRef& ring = RingOf(report);
  if (ring.training_job_uid().empty()) return;
  Job* job = state.FindJob(worker.job);
  if (job != nullptr && ring.training_job_uid() == job->uid() &&
      ring.generation() == job->generation()) {
    Apply(state, *job, worker.rank, report);
  } else {
    RefuseStale(state, worker, ring, report);
  }
}

}  // namespace ringmaster::coordinator
