#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/core/core.h"
#include "coordinator/core/ids.h"
#include "coordinator/core/timers.h"
#include "ringmaster/store/records.pb.h"

// The core's memory, shared by the files of this folder; nobody else includes this.
namespace ringmaster::coordinator {

// What one rank of the current generation has reported; rebuilt from the worker after a restart.
struct RankState {
  bool joined = false;
  std::string address;
  bool ready = false;
  bool finished = false;
  bool aborted = false;
  v1::HeldState held;
  int64_t restore_ms = 0;
  std::string checkpoint_error;
};

struct Job {
  store::JobRecord record;

  // By rank, as record.job.status.ranks.
  std::vector<RankState> ranks;
  // The generation was found in the store and not every member has re-attached yet.
  bool adopting = false;
  bool connecting = false;
  v1::RestorePlan plan;
  // End of the last phase of the open episode.
  absl::Time phase_end;
  // Of the running generation: when which step was reported, for the rate.
  std::deque<std::pair<absl::Time, int64_t>> pace;
  // Shards of checkpoints not committed yet, by step and rank, all of the current generation.
  std::map<int64_t, std::map<int, v1::CheckpointShard>> shards;
  // How many of record.garbage rank 0 was told to delete in this generation.
  int garbage_told = 0;
  absl::Time progress_stored = absl::InfinitePast();
  // Of state alone, without model activations: no worker with less memory can hold it.
  int64_t state_bytes = 0;

  const std::string& name() const { return record.job().name(); }
  const std::string& uid() const { return record.job().uid(); }
  const v1::TrainingJobSpec& spec() const { return record.job().spec(); }
  const v1::TrainingJobStatus& status() const { return record.job().status(); }
  v1::TrainingJobStatus* mutable_status() { return record.mutable_job()->mutable_status(); }
  int64_t generation() const { return status().generation(); }
  int world_size() const { return spec().parallel().ring_size() * spec().parallel().replicas(); }
};

struct Worker {
  std::string name;
  std::string incarnation;
  v1::Hardware hardware;
  std::string version;
  std::string metrics_address;
  absl::Time register_time;

  // 0: none.
  uint64_t stream = 0;
  absl::Time last_contact;
  // Known from a stored ring only; it has not re-attached since the coordinator started.
  bool unseen = false;
  bool lost = false;
  // The job it is a member of, and its rank there; empty when idle.
  std::string job;
  int rank = 0;
  // Earlier processes of this worker; they must never be heard again.
  std::deque<std::string> dead_incarnations;

  bool attached() const { return stream != 0 && !lost; }
};

struct State {
  CoreOptions options;
  int64_t epoch = 0;
  IdSource ids{0};
  // Of the call being handled.
  absl::Time now;
  // What NextTick last promised; a later call means that the process stood still.
  absl::Time promised = absl::InfiniteFuture();
  bool draining = false;
  bool store_full = false;

  std::map<std::string, std::unique_ptr<Job>, std::less<>> jobs;
  std::unordered_map<std::string, Job*> jobs_by_uid;
  // (create_time in nanoseconds, uid), for listing.
  std::map<std::pair<int64_t, std::string>, Job*> jobs_by_age;
  // Queued jobs, oldest first.
  std::map<std::pair<int64_t, std::string>, Job*> queue;
  std::map<std::string, store::RequestRecord, std::less<>> requests;
  std::map<std::string, store::CheckpointRecord, std::less<>> checkpoints;
  std::map<std::string, Worker, std::less<>> workers;
  std::unordered_map<uint64_t, std::string> streams;
  Timers timers;
  int64_t unfinished_jobs = 0;

  // Set when a worker or a waiting job came, went or changed: the placer runs at the call's end.
  bool placement_due = false;
  CoreCounters counters;
  int64_t changes = 0;

  // Of the call being handled.
  Output out;
  std::set<std::string> dirty_jobs;

  Job* FindJob(absl::string_view name) {
    const auto found = jobs.find(name);
    return found == jobs.end() ? nullptr : found->second.get();
  }
  Job* FindJobByUid(const std::string& uid) {
    const auto found = jobs_by_uid.find(uid);
    return found == jobs_by_uid.end() ? nullptr : found->second;
  }
  Worker* FindWorker(absl::string_view name) {
    const auto found = workers.find(name);
    return found == workers.end() ? nullptr : &found->second;
  }
};

}  // namespace ringmaster::coordinator
