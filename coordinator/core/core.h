#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/core/events.h"
#include "coordinator/core/options.h"

namespace ringmaster::coordinator {

struct State;

// Sums since this life of the coordinator began, for metrics.
struct CoreCounters {
  int64_t jobs_submitted = 0;
  int64_t submissions_deduplicated = 0;
  // By final state and failure class.
  std::map<std::pair<v1::TrainingJobStatus::State, v1::FailureClass>, int64_t> jobs_finished;
  int64_t lost_steps = 0;
  int64_t lease_expirations = 0;
  // Reports of an old generation or incarnation, by kind ("ring_join", "shard_written"...).
  std::map<std::string, int64_t> stale_reports;
  int64_t checkpoints_committed = 0;
  // Of each kind from the start, so that the first one is seen to rise.
  std::map<std::string, int64_t> checkpoint_failures = {{"write_error", 0}, {"invalid_shard", 0}};
  int64_t rings_formed = 0;
  // Looks for a job's workers: "PLACED", or the code of the reason why not.
  std::map<std::string, int64_t> placement_attempts;
  // Workers passed over for a while, by v1::Fault::Kind; "NO_ABORT": until they answer.
  std::map<std::string, int64_t> worker_quarantines;
};

// What the jobs of a queue do.
struct QueueUse {
  int64_t pending_jobs = 0;
  int64_t admitted_jobs = 0;
  int64_t held_workers = 0;
  // 0: no limit.
  int64_t max_workers = 0;
};

// What the status page and the gauges show.
struct CoreSnapshot {
  int64_t epoch = 0;
  bool draining = false;
  bool store_full = false;
  std::map<v1::TrainingJobStatus::State, int64_t> jobs;
  std::map<v1::Worker::State, int64_t> workers;
  int64_t cordoned_workers = 0;
  // Of workers with a lease, in rising order.
  std::vector<absl::Duration> heartbeat_ages;
  int64_t queue_length = 0;
  // Of the jobs that wait, by the code of the reason why; empty where it has not been told yet.
  std::map<std::string, int64_t> waiting;
  // By id.
  std::map<std::string, QueueUse> queues;
  absl::Duration longest_queue_wait;
  int64_t unfinished_jobs = 0;
  // Of them, oldest first: so many, and beyond only those that have, or wait to have, a ring again.
  // A long queue is not copied again and again.
  static constexpr size_t kListedJobs = 100;
  std::vector<v1::TrainingJob> active_jobs;
  // Those that ended within this time after having had a ring: their last values are still shown.
  static constexpr absl::Duration kShownAfterEnd = absl::Minutes(5);
  std::vector<v1::TrainingJob> ended_jobs;
  // When the newest checkpoint of each of these jobs was committed, by the job's name.
  std::map<std::string, absl::Time> checkpoint_times;
  CoreCounters counters;
};

// Every decision of the coordinator: jobs, queue, placement, rings, recovery, checkpoints, leases.
// Pure: events in, an Output out; no I/O, clock, lock, thread or random source (ids come from
// `seed`). Deterministic: equal events at equal times give equal outputs. Thread-compatible; owned
// by the event loop's thread.
//
// Times may be of any clock that never steps back; when the process was not run for a while (a late
// call), leases and whatever else waits for a worker's word wait that much longer.
class Core {
 public:
  // `stored` is all rows of the store, in any order. `epoch` is larger than in any life before.
  // Rings found in the store are adopted: their members have `adoption_window` to re-attach.
  // Rows that do not parse are a damaged store: DataLoss.
  static absl::StatusOr<std::unique_ptr<Core>> Create(CoreOptions options,
                                                      const StoredState& stored, int64_t epoch,
                                                      absl::Time now, uint64_t seed);
  ~Core();

  // What came in meanwhile, in its order; jobs are placed once all of it is known, and replies tell
  // of their job or queue as it is then. Lets no time-out happen: what is here already is heard
  // before anybody counts as silent.
  Output Handle(absl::Time now, absl::Span<const Event* const> events);
  Output Handle(absl::Time now, const Event& event) { return Handle(now, {&event}); }
  // Lets time-outs happen; due when now >= NextTick() and the events that came are handled,
  // harmless at any other time.
  Output Tick(absl::Time now);
  // Within a heartbeat_interval, that the core may tell silence of the workers from a standstill of
  // its own process; InfiniteFuture when it drains.
  absl::Time NextTick() const;

  // A commit failed and was rolled back: memory becomes `stored` again. The Output closes every
  // worker stream (workers re-attach and say what they do) and has no rows. Store-full mode begins.
  absl::StatusOr<Output> Reload(absl::Time now, const StoredState& stored);
  // In store-full mode creations, imports and deletions are refused with UNAVAILABLE, checkpoint
  // commits wait and progress is not stored; cancellations and generations still make rows. The
  // shell ends it once a trial write has worked; the Output may have rows that waited.
  Output SetStoreFull(absl::Time now, bool full);

  // Null when there is none. Valid until the next call that is not const.
  const v1::TrainingJob* FindJob(absl::string_view name) const;
  // Of one project, or with "projects/-" of all; oldest first. For snapshots of watches.
  std::vector<const v1::TrainingJob*> Jobs(absl::string_view parent) const;
  int64_t resource_version() const;

  CoreSnapshot Snapshot(absl::Time now) const;

 private:
  explicit Core(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace ringmaster::coordinator
