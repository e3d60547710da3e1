#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "ringmaster/store/records.pb.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::coordinator {

// What one rank of the current generation has reported; rebuilt from the worker after a restart.
struct RankState {
  bool joined = false;
  std::string address;
  bool ready = false;
  bool finished = false;
  bool aborted = false;
  // As the last Hello told it.
  v1::Phase phase = v1::PHASE_UNSPECIFIED;
  v1::HeldState held;
  int64_t restore_ms = 0;
  std::string checkpoint_error;
};

// A process that failed a job which others had run.
struct Unfit {
  std::string incarnation;
  // Trying it again would end the same way, as far as it knows.
  bool lasting = false;
  // Somebody was there who had run the job.
  bool witnessed = false;
  absl::Duration pause;
  absl::Time until;
  std::string reason;
};

// Oldest first.
using JobAge = std::pair<int64_t, std::string>;
// The highest priority first, then oldest first.
using QueueKey = std::pair<int32_t, JobAge>;
// Before every place.
const QueueKey kFirstInQueue = {std::numeric_limits<int32_t>::min(), {}};

struct Job {
  store::JobRecord record;

  // By rank, as record.job.status.ranks.
  std::vector<RankState> ranks;
  // What its queue counts of it. See queues.h.
  int held = 0;
  // The generation was found in the store and not every member has re-attached yet.
  bool adopting = false;
  // ABORTING, and nobody is aborted any more: the placer looks for workers.
  bool waiting = false;
  // While waiting: earlier than this no generation is begun.
  absl::Time retry_at = absl::InfinitePast();
  // ConnectRing was sent, with this plan.
  bool connecting = false;
  v1::RestorePlan plan;
  // End of the last phase of the open episode.
  absl::Time phase_end;
  // Seconds of the newest steps of this generation.
  std::deque<double> pace;
  absl::Time last_step = absl::InfinitePast();
  // Shards of checkpoints not committed yet, by step and rank, all of the current generation.
  std::map<int64_t, std::map<int, v1::CheckpointShard>> shards;
  // How many of record.garbage, from its begin, a member was told to delete in this generation.
  int garbage_told = 0;
  // How often restoring from a checkpoint failed, by directory.
  std::map<std::string, int> damaged;
  // The generation that this was last told in: all its ranks may tell it.
  int64_t unreadable_in = 0;
  // By worker: whom the placer passes over for this job, and until when. See blame.h.
  std::map<std::string, Unfit> unfit;
  // Until when status.run_duration is counted, of a job that is RUNNING.
  absl::Time run_counted;
  // When it first ran since it left the queue, or since the coordinator's start.
  absl::Time run_since = absl::InfiniteFuture();
  absl::Time progress_stored = absl::InfinitePast();
  // The uid of the job that its workers are for; empty when there is none. Not stored: what a new
  // coordinator finds to be stopping does so, and what is not is looked at anew.
  std::string preempted_by;
  // How often the checkpoint that it was to stop with could not be written, since one was.
  int failed_stops = 0;
  // Earlier than this it is not stopped again for an operator's sake.
  absl::Time stop_again = absl::InfinitePast();

  const std::string& name() const { return record.job().name(); }
  const std::string& uid() const { return record.job().uid(); }
  const v1::TrainingJobSpec& spec() const { return record.job().spec(); }
  const v1::TrainingJobStatus& status() const { return record.job().status(); }
  v1::TrainingJobStatus* mutable_status() { return record.mutable_job()->mutable_status(); }
  int64_t generation() const { return status().generation(); }
  // The newest step that all ranks agreed on, and the tokens until then.
  void SetStep(int64_t step) {
    v1::Progress* progress = mutable_status()->mutable_progress();
    progress->set_step(step);
    progress->set_tokens_processed(step * spec().batch().global_sequences() *
                                   spec().data().sequence_length());
  }
  int world_size() const { return spec().parallel().ring_size() * spec().parallel().replicas(); }
  JobAge age_key() const;
  QueueKey queue_key() const { return {-spec().priority(), age_key()}; }
};

}  // namespace ringmaster::coordinator
