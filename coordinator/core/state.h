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
#include "coordinator/core/job.h"
#include "coordinator/core/timers.h"
#include "ringmaster/store/records.pb.h"

// The core's memory, shared by the files of this folder; nobody else includes this.
namespace ringmaster::coordinator {

struct Worker {
  std::string name;
  std::string incarnation;
  v1::Hardware hardware;
  std::string version;
  std::string metrics_address;
  // Empty: none that is known.
  std::string supervisor;
  absl::Time register_time;

  // 0: none.
  uint64_t stream = 0;
  // When `stream` broke; where the coordinator stood still since, when it went on.
  absl::Time detached;
  absl::Time last_contact;
  // Known from a stored ring only; it has not re-attached since the coordinator started.
  bool unseen = false;
  bool lost = false;
  // It did not abort in time: no work until it says that it is idle.
  bool unresponsive = false;
  // The job it is a member of, and its rank there; empty when idle.
  std::string job;
  int rank = 0;
  // Busy, and a waiting job counts on it.
  bool claimed = false;
  // The uid of the job that its last ring was stopped for; empty: of none.
  std::string freed_for;
  // Earlier processes of this worker; they must never be heard again.
  std::deque<std::string> dead_incarnations;

  bool attached() const { return stream != 0 && !lost; }
};

using JobsByAge = std::map<JobAge, Job*>;
using JobQueue = std::map<QueueKey, Job*>;

// What jobs share that are of one queue.
struct ClusterQueue {
  store::QueueRecord record;
  JobQueue waiting;
  // Its jobs that hold workers, and how many.
  int admitted = 0;
  int held = 0;
  // Of the last look at all: workers that jobs which wait are to get before any behind them in the
  // queue; that one, which the quota holds back, looked in vain for jobs of the queue to stop.
  int kept = 0;
  bool has_no_victims = false;
};

struct State {
  CoreOptions options;
  int64_t epoch = 0;
  IdSource ids{0};
  // Of the call being handled.
  absl::Time now;
  // When the core was last called. A next call that comes late means that the process stood still.
  absl::Time called;
  // When what was due after such a standstill last waited for words on their way.
  absl::Time waited = absl::InfinitePast();
  // Of a core that found rings in the store: when all workers that will come back are back.
  absl::Time settled = absl::InfinitePast();
  bool draining = false;
  bool store_full = false;

  std::map<std::string, std::unique_ptr<Job>, std::less<>> jobs;
  std::unordered_map<std::string, Job*> jobs_by_uid;
  JobsByAge jobs_by_age;
  JobsByAge unfinished;
  JobQueue queue;
  // Those that are RUNNING, in the order of the queue.
  JobQueue running;
  // By id. Every job that has not ended has one.
  std::map<std::string, ClusterQueue, std::less<>> queues;
  std::map<std::string, store::RequestRecord, std::less<>> requests;
  std::map<std::string, store::CheckpointRecord, std::less<>> checkpoints;
  std::map<std::string, Worker, std::less<>> workers;
  // By worker's name, whatever process has it. Of each there is a worker, be it a lost one.
  std::map<std::string, store::CordonRecord, std::less<>> cordons;
  std::unordered_map<uint64_t, std::string> streams;
  Timers timers;

  // A worker or a waiting job came, went or changed: the placer looks at those that wait at the
  // call's end. Else at new jobs only, with the idle workers that it kept for nobody; `keeps_idle`:
  // it keeps others.
  bool placement_due = false;
  std::vector<std::string> new_jobs;
  std::vector<std::string> unreserved;
  bool keeps_idle = false;
  // The next look tells all anew why they wait, though no worker is left; when one last did.
  bool explanation_due = true;
  absl::Time explained = absl::InfinitePast();
  // The place of the last broken ring that counts on busy workers. What it counts on is looked at
  // anew for a new job that may be before it: of no lower priority.
  QueueKey last_lacking = kFirstInQueue;

  CoreCounters counters;
  int64_t changes = 0;

  // Of the call being handled.
  Output out;
  std::set<std::string> jobs_to_store;
  std::set<std::string> jobs_to_show;

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
  bool IsCordoned(const Worker& worker) const { return cordons.count(worker.name) > 0; }
  // The live process that has this rank of the job's current generation, or null.
  Worker* Member(const Job& job, int rank) {
    const v1::RankAssignment& assigned = job.status().ranks(rank);
    Worker* worker = FindWorker(assigned.worker());
    const bool is_member = worker != nullptr && !worker->lost && worker->job == job.name() &&
                           worker->incarnation == assigned.incarnation();
    return is_member ? worker : nullptr;
  }
};

}  // namespace ringmaster::coordinator
