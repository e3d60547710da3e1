#include "coordinator/metrics/metric_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ringmaster::coordinator {
namespace {

using enum MetricType;

constexpr MetricDescription kTable[] = {
    {Metric::kBuildInfo, "ringmaster_build_info", kGauge, "1", "Version and commit of this binary.",
     "version,commit"},
    {Metric::kEpoch, "ringmaster_coordinator_epoch", kGauge, "starts",
     "Number of the coordinator's current life.", ""},
    {Metric::kDraining, "ringmaster_drain_state", kGauge, "0 or 1",
     "1 while the coordinator drains.", ""},
    {Metric::kStoreFull, "ringmaster_store_full", kGauge, "0 or 1",
     "1 while the store has no room and submissions are refused.", ""},
    {Metric::kGrpcRequests, "ringmaster_grpc_requests_total", kCounter, "calls",
     "Finished calls; a stream counts when it ends.", "service,method,code"},
    {Metric::kGrpcRequestSeconds, "ringmaster_grpc_request_duration_seconds", kHistogram, "seconds",
     "From a unary call's arrival to its reply, commit included.", "method"},
    {Metric::kWatchers, "ringmaster_watchers", kGauge, "streams",
     "Open WatchTrainingJobs streams: of one job, or of many jobs.", "kind"},
    {Metric::kWatchEvictions, "ringmaster_watch_evictions_total", kCounter, "streams",
     "Watches ended by the coordinator: slow, the client did not read in time.", "reason"},
    {Metric::kLoopEvents, "ringmaster_loop_events_total", kCounter, "events",
     "Events the event loop handled.", "kind"},
    {Metric::kLoopRejected, "ringmaster_loop_rejected_total", kCounter, "calls",
     "Calls refused before they reached the core.", "reason"},
    {Metric::kLoopQueue, "ringmaster_loop_queue_length", kGauge, "events",
     "Events that wait for the event loop.", ""},
    {Metric::kTickSeconds, "ringmaster_tick_duration_seconds", kHistogram, "seconds",
     "One round of the event loop: handle, commit, release.", ""},
    {Metric::kTickLagSeconds, "ringmaster_tick_lag_seconds", kGauge, "seconds",
     "How late the last timer was handled.", ""},
    {Metric::kCommitSeconds, "ringmaster_db_commit_duration_seconds", kHistogram, "seconds",
     "One transaction, flushed to the disk.", ""},
    {Metric::kCommitRows, "ringmaster_db_group_commit_rows", kHistogram, "rows",
     "Rows in one transaction.", ""},
    {Metric::kStoreBytes, "ringmaster_db_size_bytes", kGauge, "bytes",
     "The database on disk with its log.", ""},
    {Metric::kJobs, "ringmaster_jobs", kGauge, "jobs", "Jobs in each state.", "state"},
    {Metric::kJobsSubmitted, "ringmaster_jobs_submitted_total", kCounter, "jobs",
     "Jobs stored by this process.", ""},
    {Metric::kJobsFinished, "ringmaster_jobs_finished_total", kCounter, "jobs",
     "Jobs that reached a final state in this process.", "outcome,failure_class"},
    {Metric::kSubmissionsDeduplicated, "ringmaster_submissions_deduplicated_total", kCounter,
     "calls", "Creations answered from an earlier one with the same request_id.", ""},
    {Metric::kQueuePending, "ringmaster_queue_pending", kGauge, "jobs",
     "Jobs that wait for workers.", ""},
    {Metric::kQueueLongestWait, "ringmaster_queue_longest_wait_seconds", kGauge, "seconds",
     "How long the job that waits longest has waited.", ""},
    {Metric::kQueueWaitSeconds, "ringmaster_queue_wait_seconds", kHistogram, "seconds",
     "From a job's submission to its first placement.", ""},
    {Metric::kJobsWaiting, "ringmaster_jobs_waiting", kGauge, "jobs",
     "Jobs that wait for workers, by why; none: not looked at yet.", "reason"},
    {Metric::kQueueJobs, "ringmaster_queue_jobs", kGauge, "jobs",
     "Jobs of each queue that wait (pending) or have been placed (admitted).", "queue,state"},
    {Metric::kQueueHeldWorkers, "ringmaster_queue_held_workers", kGauge, "workers",
     "Workers that the jobs of each queue hold.", "queue"},
    {Metric::kQueueMaxWorkers, "ringmaster_queue_max_workers", kGauge, "workers",
     "Quota of each queue that has one.", "queue"},
    {Metric::kPlacementAttempts, "ringmaster_placement_attempts_total", kCounter, "attempts",
     "Looks for a job's workers: placed, or why the job waits on.", "result"},
    {Metric::kWorkers, "ringmaster_workers", kGauge, "workers", "Workers in each state.", "state"},
    {Metric::kWorkersCordoned, "ringmaster_workers_cordoned", kGauge, "workers",
     "Workers that an operator keeps from getting work, away or not.", ""},
    {Metric::kHeartbeatAgeSeconds, "ringmaster_worker_heartbeat_age_seconds", kGauge, "seconds",
     "Age of the last heartbeat of the workers that have a lease: p50, p99, max.", "stat"},
    {Metric::kLeaseExpirations, "ringmaster_worker_lease_expirations_total", kCounter, "leases",
     "Workers that were given up because they were silent.", ""},
    {Metric::kStaleReports, "ringmaster_stale_messages_rejected_total", kCounter, "reports",
     "Reports of an old generation or incarnation.", "kind"},
    {Metric::kWorkerQuarantines, "ringmaster_worker_quarantines_total", kCounter, "workers",
     "Workers passed over for a while: by one job, after such a fault of theirs; no_abort: by all, "
     "until they answer.",
     "reason"},
    {Metric::kRingsFormed, "ringmaster_rings_formed_total", kCounter, "generations",
     "Generations whose ranks were all ready.", ""},
    {Metric::kRecoveryEpisodes, "ringmaster_recovery_episodes_total", kCounter, "episodes",
     "Recoveries that ended: recovered, with a new step, or given_up, with the job.",
     "cause,result"},
    {Metric::kRecoveryPhaseSeconds, "ringmaster_recovery_phase_seconds", kHistogram, "seconds",
     "Phases of finished recoveries.", "phase"},
    {Metric::kRecoveryLostSteps, "ringmaster_recovery_lost_steps_total", kCounter, "steps",
     "Steps that were done again after a fault.", ""},
    {Metric::kJobStep, "ringmaster_job_step", kGauge, "steps", "Optimizer updates done.",
     "training_job"},
    {Metric::kJobSteps, "ringmaster_job_steps", kGauge, "steps", "Optimizer updates asked for.",
     "training_job"},
    {Metric::kJobLoss, "ringmaster_job_loss", kGauge, "nats per token",
     "Training loss of the last step.", "training_job"},
    {Metric::kJobTokens, "ringmaster_job_tokens", kGauge, "tokens",
     "Training tokens since step 0, all replicas.", "training_job"},
    {Metric::kJobTokensPerSecond, "ringmaster_job_tokens_per_second", kGauge, "tokens per second",
     "Speed over the last steps, all ranks together.", "training_job"},
    {Metric::kJobStepTime, "ringmaster_job_last_step_timestamp_seconds", kGauge,
     "seconds since 1970",
     "When the last step was done; before the first one, since when the ring tries.",
     "training_job"},
    {Metric::kJobGeneration, "ringmaster_ring_generation", kGauge, "generations",
     "Number of the ring's formation.", "training_job"},
    {Metric::kJobRingSize, "ringmaster_ring_size", kGauge, "workers",
     "Workers of the current generation.", "training_job"},
    {Metric::kJobEpisodes, "ringmaster_job_recovery_episodes", kGauge, "episodes",
     "Recoveries of the job so far.", "training_job"},
    {Metric::kJobCheckpointTime, "ringmaster_checkpoint_last_success_timestamp_seconds", kGauge,
     "seconds since 1970", "When the job's newest checkpoint was committed.", "training_job"},
    {Metric::kCheckpointsCommitted, "ringmaster_checkpoints_committed_total", kCounter,
     "checkpoints", "Checkpoints whose manifest was stored.", ""},
    {Metric::kCheckpointFailures, "ringmaster_checkpoint_failures_total", kCounter, "checkpoints",
     "Checkpoints that a rank could not write, or whose shard cannot belong to one.", "reason"},
};

constexpr const char* TypeName(MetricType type) {
  switch (type) {
    case kCounter:
      return "counter";
    case kGauge:
      return "gauge";
    case kHistogram:
      return "histogram";
  }
  return "";
}

}  // namespace

absl::Span<const MetricDescription> MetricTable() { return kTable; }

const MetricDescription& Describe(Metric metric) { return kTable[static_cast<int>(metric)]; }

std::string MetricTableMarkdown() {
  std::string text = "| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n";
  for (const MetricDescription& metric : kTable) {
    const std::string labels =
        *metric.labels == '\0' ? "" : absl::StrReplaceAll(metric.labels, {{",", ", "}});
    absl::StrAppend(&text, "| `", metric.name, "` | ", TypeName(metric.type), " | ", metric.unit,
                    " | ", labels, " | ", metric.help, " |\n");
  }
  return text;
}

}  // namespace ringmaster::coordinator
