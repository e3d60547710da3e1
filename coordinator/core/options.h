#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace ringmaster::coordinator {

// Every limit of the core that is not a job's own.
struct CoreOptions {
  // Jobs without a directory get {shared_directory}/{project}/{job id}-{start of the uid}; empty:
  // such jobs are refused.
  std::string shared_directory;
  // Without a report for this long a worker counts as dead.
  absl::Duration lease_ttl = absl::Seconds(5);
  absl::Duration heartbeat_interval = absl::Seconds(1);
  // How long a ring that does not step waits for a member whose stream broke.
  absl::Duration suspect_grace = absl::Milliseconds(500);
  // How long members of stored rings may take to re-attach after a start of the coordinator.
  absl::Duration adoption_window = absl::Seconds(10);
  // FormRing to the last RingJoin; ConnectRing to the last RingReady (models are built and
  // checkpoints loaded meanwhile).
  absl::Duration join_timeout = absl::Seconds(30);
  absl::Duration ready_timeout = absl::Minutes(15);
  // Beyond a job's abort_deadline, after which a member that did not abort is no longer waited for.
  absl::Duration abort_margin = absl::Seconds(2);
  absl::Duration request_id_ttl = absl::Hours(24);
  // Progress is stored this often at most; every change of state stores it too.
  absl::Duration progress_store_interval = absl::Seconds(1);
  // How long a lost worker is still listed.
  absl::Duration lost_worker_retention = absl::Minutes(10);
  int64_t unfinished_jobs_max = 10000;
  // Jobs at the head of the queue that are told at once of every change of why they wait. Those
  // behind, for whom no worker is left, are told within `explanation_interval`: else each placement
  // would cost a look at all of a long queue.
  int shown_positions = 100;
  absl::Duration explanation_interval = absl::Seconds(1);
  // Whether running jobs are stopped for waiting ones of a higher priority.
  bool preemption = false;
  // What a job has had of its workers, from its first step's begin on, before they are taken.
  absl::Duration preemption_min_runtime = absl::Minutes(1);
};

}  // namespace ringmaster::coordinator
