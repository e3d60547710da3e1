#include "coordinator/loop/core_metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"

namespace ringmaster::coordinator {
namespace {

using Series = std::vector<std::pair<LabelValues, double>>;
using v1::TrainingJobStatus;

std::string StateLabel(TrainingJobStatus::State state) {
  return absl::AsciiStrToLower(TrainingJobStatus::State_Name(state));
}

double Seconds(const google::protobuf::Timestamp& time) {
  return static_cast<double>(time.seconds()) + time.nanos() * 1e-9;
}

template <typename Map, typename Name>
Series PerState(const Map& counts, const Name& name) {
  Series series;
  for (const auto& [state, count] : counts) {
    series.push_back({{name(state)}, static_cast<double>(count)});
  }
  return series;
}

void Raise(Metrics& metrics, Metric metric, int64_t now, int64_t before,
           const LabelValues& labels = {}) {
  metrics.Count(metric, labels, static_cast<double>(now - before));
}

template <typename Map>
int64_t Before(const Map& map, const typename Map::key_type& key) {
  const auto it = map.find(key);
  return it == map.end() ? 0 : it->second;
}

// One label, whose values are the keys in lower case.
void RaiseEach(Metrics& metrics, Metric metric, const std::map<std::string, int64_t>& now,
               const std::map<std::string, int64_t>& before) {
  for (const auto& [key, count] : now) {
    Raise(metrics, metric, count, Before(before, key), {absl::AsciiStrToLower(key)});
  }
}

// Of `ages`, in rising order; 0 of none.
void PublishHeartbeatAges(const std::vector<absl::Duration>& ages, Metrics& metrics) {
  constexpr std::pair<double, const char*> kQuantiles[] = {{0.5, "p50"}, {0.99, "p99"}, {1, "max"}};
  for (const auto& [quantile, label] : kQuantiles) {
    const double rank = std::ceil(quantile * static_cast<double>(ages.size()));
    const absl::Duration age =
        ages.empty() ? absl::ZeroDuration() : ages[static_cast<size_t>(rank) - 1];
    metrics.Set(Metric::kHeartbeatAgeSeconds, absl::ToDoubleSeconds(age), {label});
  }
}

// Since when there is no new step; before the first one, since the ring forms, starts or recovers.
// While it was paused nobody expected one.
double LastStepTime(const v1::TrainingJob& job) {
  const TrainingJobStatus& status = job.status();
  // A recovery lasts until there is a step, however often the state changes meanwhile.
  const auto& since = status.progress().has_step_time() ? status.progress().step_time()
                      : status.episodes().empty()       ? job.update_time()
                                                        : status.episodes(0).detect_time();
  return std::max(Seconds(since), Seconds(job.resume_time()));
}

void PublishJobs(const CoreSnapshot& snapshot, Metrics& metrics) {
  Series step, steps, loss, tokens, speed, step_time, generation, ring_size, episodes, checkpoint;
  const auto add = [&](const v1::TrainingJob& job) {
    const LabelValues name = {job.name()};
    const v1::Progress& progress = job.status().progress();
    step.push_back({name, static_cast<double>(progress.step())});
    steps.push_back({name, static_cast<double>(job.spec().steps())});
    generation.push_back({name, static_cast<double>(job.status().generation())});
    episodes.push_back({name, static_cast<double>(job.status().episodes_count())});
    if (!progress.has_step_time()) return;
    loss.push_back({name, progress.loss()});
    tokens.push_back({name, static_cast<double>(progress.tokens_processed())});
  };
  for (const v1::TrainingJob& job : snapshot.active_jobs) {
    // Queued jobs have nothing to show yet, paused ones nothing new; there may be many of them.
    if (job.status().generation() == 0) continue;
    if (job.status().state() == TrainingJobStatus::PAUSED) continue;
    add(job);
    const LabelValues name = {job.name()};
    ring_size.push_back({name, static_cast<double>(job.status().ranks_size())});
    step_time.push_back({name, LastStepTime(job)});
    if (!job.status().progress().has_step_time()) continue;
    speed.push_back({name, job.status().progress().tokens_per_second()});
  }
  for (const v1::TrainingJob& job : snapshot.ended_jobs) add(job);
  for (const auto& [name, time] : snapshot.checkpoint_times) {
    checkpoint.push_back({{name}, absl::ToDoubleSeconds(time - absl::UnixEpoch())});
  }
  metrics.Replace(Metric::kJobCheckpointTime, checkpoint);
  metrics.Replace(Metric::kJobStep, step);
  metrics.Replace(Metric::kJobSteps, steps);
  metrics.Replace(Metric::kJobLoss, loss);
  metrics.Replace(Metric::kJobTokens, tokens);
  metrics.Replace(Metric::kJobTokensPerSecond, speed);
  metrics.Replace(Metric::kJobStepTime, step_time);
  metrics.Replace(Metric::kJobGeneration, generation);
  metrics.Replace(Metric::kJobRingSize, ring_size);
  metrics.Replace(Metric::kJobEpisodes, episodes);
}

void PublishQueues(const CoreSnapshot& snapshot, Metrics& metrics) {
  metrics.Set(Metric::kQueuePending, static_cast<double>(snapshot.queue_length));
  metrics.Set(Metric::kQueueLongestWait, absl::ToDoubleSeconds(snapshot.longest_queue_wait));
  metrics.Replace(Metric::kJobsWaiting, PerState(snapshot.waiting, [](const std::string& code) {
                    return code.empty() ? "none" : absl::AsciiStrToLower(code);
                  }));
  Series jobs, held, most;
  for (const auto& [id, use] : snapshot.queues) {
    jobs.push_back({{id, "pending"}, static_cast<double>(use.pending_jobs)});
    jobs.push_back({{id, "admitted"}, static_cast<double>(use.admitted_jobs)});
    held.push_back({{id}, static_cast<double>(use.held_workers)});
    if (use.max_workers > 0) most.push_back({{id}, static_cast<double>(use.max_workers)});
  }
  metrics.Replace(Metric::kQueueJobs, jobs);
  metrics.Replace(Metric::kQueueHeldWorkers, held);
  metrics.Replace(Metric::kQueueMaxWorkers, most);
}

}  // namespace

void CoreMetrics::Publish(const CoreSnapshot& snapshot, Metrics& metrics) {
  metrics.Set(Metric::kEpoch, static_cast<double>(snapshot.epoch));
  metrics.Set(Metric::kDraining, snapshot.draining);
  metrics.Set(Metric::kStoreFull, snapshot.store_full);
  PublishHeartbeatAges(snapshot.heartbeat_ages, metrics);
  PublishQueues(snapshot, metrics);
  metrics.Replace(Metric::kJobs, PerState(snapshot.jobs, StateLabel));
  metrics.Replace(Metric::kWorkers, PerState(snapshot.workers, [](v1::Worker::State state) {
                    return absl::AsciiStrToLower(v1::Worker::State_Name(state));
                  }));
  metrics.Set(Metric::kWorkersCordoned, static_cast<double>(snapshot.cordoned_workers));
  PublishJobs(snapshot, metrics);

  const CoreCounters& now = snapshot.counters;
  const CoreCounters& before = published_;
  Raise(metrics, Metric::kJobsSubmitted, now.jobs_submitted, before.jobs_submitted);
  Raise(metrics, Metric::kSubmissionsDeduplicated, now.submissions_deduplicated,
        before.submissions_deduplicated);
  Raise(metrics, Metric::kRecoveryLostSteps, now.lost_steps, before.lost_steps);
  Raise(metrics, Metric::kLeaseExpirations, now.lease_expirations, before.lease_expirations);
  Raise(metrics, Metric::kCheckpointsCommitted, now.checkpoints_committed,
        before.checkpoints_committed);
  Raise(metrics, Metric::kRingsFormed, now.rings_formed, before.rings_formed);
  for (const auto& [end, count] : now.jobs_finished) {
    const auto& [state, failure] = end;
    // "none" for what did not fail: an empty label is the same as no label.
    Raise(metrics, Metric::kJobsFinished, count, Before(before.jobs_finished, end),
          {StateLabel(state), failure == v1::FAILURE_CLASS_UNSPECIFIED
                                  ? "none"
                                  : absl::AsciiStrToLower(v1::FailureClass_Name(failure))});
  }
  RaiseEach(metrics, Metric::kStaleReports, now.stale_reports, before.stale_reports);
  RaiseEach(metrics, Metric::kCheckpointFailures, now.checkpoint_failures,
            before.checkpoint_failures);
  RaiseEach(metrics, Metric::kPlacementAttempts, now.placement_attempts, before.placement_attempts);
  RaiseEach(metrics, Metric::kWorkerQuarantines, now.worker_quarantines, before.worker_quarantines);
  published_ = now;
}

void CoreMetrics::Observe(const Output& output, Metrics& metrics) {
  for (const absl::Duration wait : output.queue_waits) {
    metrics.Observe(Metric::kQueueWaitSeconds, absl::ToDoubleSeconds(wait));
  }
  for (const EpisodeEnded& ended : output.episodes) {
    const v1::RecoveryEpisode& episode = ended.episode;
    metrics.Count(Metric::kRecoveryEpisodes,
                  {absl::AsciiStrToLower(v1::RecoveryEpisode::Cause_Name(episode.cause())),
                   episode.has_first_step_ms() ? "recovered" : "given_up"});
    const auto observe = [&](bool known, int64_t ms, const char* phase) {
      if (known)
        metrics.Observe(Metric::kRecoveryPhaseSeconds, static_cast<double>(ms) / 1000, {phase});
    };
    observe(episode.has_detect_ms(), episode.detect_ms(), "detect");
    observe(episode.has_abort_ms(), episode.abort_ms(), "abort");
    observe(episode.has_form_ms(), episode.form_ms(), "form");
    observe(episode.has_restore_ms(), episode.restore_ms(), "restore");
    observe(episode.has_first_step_ms(), episode.first_step_ms(), "first_step");
  }
}

}  // namespace ringmaster::coordinator
