#pragma once

#include "absl/time/time.h"

namespace ringmaster::worker {

// Every limit of the core that is not the coordinator's or the job's.
struct SessionLimits {
  // Between two StepsDone; the first step of a generation is reported at once.
  absl::Duration steps_report_interval = absl::Milliseconds(50);
  // For jobs that do not say.
  absl::Duration abort_deadline = absl::Seconds(5);
  // How long a step may go on after SIGTERM or Drain before the ring is abandoned.
  absl::Duration drain_deadline = absl::Seconds(20);
  // How long a ring goes on though the only coordinator that answers has forgotten it.
  absl::Duration stale_coordinator_patience = absl::Seconds(30);
  // How long a process asks for a name that another one has. Longer than a lease, so that it
  // outlasts a predecessor whose end nobody could tell.
  absl::Duration name_patience = absl::Seconds(15);
  // Step records and shard reports kept for sending again after a re-attach.
  int unconfirmed_records_max = 1024;
  int unconfirmed_shards_max = 8;
};

}  // namespace ringmaster::worker
