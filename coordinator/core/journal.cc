#include "coordinator/core/journal.h"

#include <utility>

#include "coordinator/core/run_clock.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {

JobAge Job::age_key() const {
  return {absl::ToUnixNanos(FromProto(record.job().create_time())), uid()};
}

void Store(State& state, const Job& job) { state.jobs_to_store.insert(job.name()); }

void Show(State& state, const Job& job) { state.jobs_to_show.insert(job.name()); }

void StoreProgress(State& state, Job& job) {
  Show(state, job);
  if (!state.store_full &&
      state.now - job.progress_stored >= state.options.progress_store_interval) {
    Store(state, job);
  }
}

void Put(State& state, Table table, const std::string& key,
         const google::protobuf::Message& record) {
  state.out.rows.push_back({table, key, record.SerializeAsString()});
}

void Erase(State& state, Table table, const std::string& key) {
  state.out.rows.push_back({table, key, std::nullopt});
}

void Tell(State& state, const Worker& worker, v1::Directive directive) {
  if (!worker.attached()) return;
  directive.set_epoch(state.epoch);
  state.out.directives.push_back({.stream = worker.stream, .directive = std::move(directive)});
}

void EndStream(State& state, uint64_t stream, absl::Status status) {
  state.out.directives.push_back(
      {.stream = stream, .close = true, .close_status = std::move(status)});
}

v1::RingRef RefOf(const Job& job, int rank) {
  v1::RingRef ring;
  ring.set_training_job(job.name());
  ring.set_training_job_uid(job.uid());
  ring.set_generation(job.generation());
  ring.set_rank(rank);
  return ring;
}

Output TakeOutput(State& state) {
  for (const std::string& name : std::exchange(state.jobs_to_store, {})) {
    state.jobs_to_show.insert(name);
    Job* job = state.FindJob(name);
    if (job == nullptr) {
      Erase(state, Table::kJobs, name);
    } else {
      job->progress_stored = state.now;
      CountRunTime(state, *job);
      Put(state, Table::kJobs, name, job->record);
    }
  }
  for (const std::string& name : std::exchange(state.jobs_to_show, {})) {
    Job* job = state.FindJob(name);
    if (job != nullptr) CountRunTime(state, *job);
    state.out.changes.push_back({.name = name,
                                 .deleted = job == nullptr,
                                 .resource_version = (state.epoch << 32) + ++state.changes});
  }
  return std::exchange(state.out, {});
}

}  // namespace ringmaster::coordinator
