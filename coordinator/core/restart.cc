#include "coordinator/core/restart.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/cordon.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/queues.h"
#include "coordinator/core/run_clock.h"
#include "coordinator/core/times.h"
#include "coordinator/core/workers.h"

namespace ringmaster::coordinator {
namespace {

template <typename Record>
absl::Status Parse(const Row& row, Record* record) {
  if (record->ParseFromString(row.value)) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("the stored row '", row.key, "' is not a ", record->GetTypeName()));
}

absl::Status LoadRow(State& state, const Row& row) {
  absl::Status status;
  switch (row.table) {
    case Table::kJobs: {
      store::JobRecord record;
      status = Parse(row, &record);
      if (!status.ok()) return status;
      // Of a version without queues.
      v1::TrainingJobSpec* spec = record.mutable_job()->mutable_spec();
      if (spec->queue().empty()) spec->set_queue(kDefaultQueue);
      AddJob(state, std::move(record));
      return status;
    }
    case Table::kRequests: {
      store::RequestRecord record;
      status = Parse(row, &record);
      state.timers.Set(TimerKind::kForgetRequest, row.key,
                       FromProto(record.create_time()) + state.options.request_id_ttl);
      state.requests[row.key] = std::move(record);
      return status;
    }
    case Table::kCheckpoints: {
      store::CheckpointRecord record;
      status = Parse(row, &record);
      state.checkpoints[row.key] = std::move(record);
      return status;
    }
    case Table::kCordons:
      return Parse(row, &state.cordons[row.key]);
    case Table::kQueues:
      return Parse(row, &state.queues[row.key].record);
  }
  return absl::DataLossError(absl::StrCat("the stored row '", row.key, "' is of no known table"));
}

void Adopt(State& state, Job& job) {
  // A recovery may be open, with a ring or without.
  job.phase_end = state.now;
  const bool has_ring = job.record.stage() != store::RING_STAGE_NONE;
  if (!has_ring) return;
  state.settled = state.now + state.options.adoption_window;
  job.adopting = job.record.stage() == store::RING_STAGE_FORMING;
  job.last_step = state.now;
  if (job.status().state() == v1::TrainingJobStatus::RUNNING) {
    StartRunClock(state, job);
    // It ran between two tries to stop. When the next one was to be is not stored.
    if (!DrainOf(state, job).empty()) {
      state.timers.Set(TimerKind::kStopAgain, job.name(), state.settled);
    }
  }
  for (int rank = 0; rank < job.status().ranks_size(); ++rank) AddUnseenWorker(state, job, rank);
  if (job.record.stage() == store::RING_STAGE_ABORTING) {
    state.timers.Set(TimerKind::kStage, job.name(),
                     state.now + std::max(state.options.adoption_window,
                                          FromProto(job.spec().recovery().abort_deadline()) +
                                              state.options.abort_margin));
  }
}

}  // namespace

absl::Status LoadStored(State& state, const StoredState& stored) {
  for (const Row& row : stored.rows) {
    const absl::Status status = LoadRow(state, row);
    if (!status.ok()) return status;
  }
  CompleteQueues(state);
  for (const auto& [age, job] : state.unfinished) Adopt(state, *job);
  for (const auto& [name, cordon] : state.cordons) AddAbsentWorker(state, name);
  state.placement_due = true;
  return absl::OkStatus();
}

}  // namespace ringmaster::coordinator
