#include "coordinator/loop/core_metrics.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kJob[] = "{training_job=\"projects/default/trainingJobs/a\"}";

v1::TrainingJob Started() {
  v1::TrainingJob job;
  job.set_name("projects/default/trainingJobs/a");
  job.mutable_update_time()->set_seconds(100);
  job.mutable_spec()->set_steps(10);
  job.mutable_status()->set_generation(1);
  job.mutable_status()->add_ranks();
  return job;
}

v1::TrainingJob Stepped() {
  v1::TrainingJob job = Started();
  v1::Progress* progress = job.mutable_status()->mutable_progress();
  progress->set_step(7);
  progress->set_loss(2.5);
  progress->set_tokens_per_second(5000);
  progress->mutable_step_time()->set_seconds(900);
  return job;
}

class CoreMetricsTest : public ::testing::Test {
 protected:
  std::string Publish(const CoreSnapshot& snapshot) {
    core_metrics_.Publish(snapshot, metrics_);
    return metrics_.Text();
  }

  Metrics metrics_;
  CoreMetrics core_metrics_;
};

// The alert on jobs that make no step would not see one that never made any.
TEST_F(CoreMetricsTest, AJobWithoutAStepShowsSinceWhenItTries) {
  CoreSnapshot snapshot;
  v1::TrainingJob& job = snapshot.active_jobs.emplace_back(Started());
  const std::string since = absl::StrCat("ringmaster_job_last_step_timestamp_seconds", kJob, " ");
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(since, "100\n")));
  EXPECT_THAT(metrics_.Text(), HasSubstr(absl::StrCat("ringmaster_job_step", kJob, " 0\n")));
  // It forms again and again: each time the state changes.
  job.mutable_status()->add_episodes()->mutable_detect_time()->set_seconds(150);
  job.mutable_update_time()->set_seconds(800);
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(since, "150\n")));
  job = Stepped();
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(since, "900\n")));
}

TEST_F(CoreMetricsTest, RecoveriesAndWaitsCountWhenTheyHaveEnded) {
  Output output;
  EpisodeEnded& recovered = output.episodes.emplace_back();
  recovered.episode.set_cause(v1::RecoveryEpisode::WORKER_EXIT);
  recovered.episode.set_first_step_ms(400);
  EpisodeEnded& given_up = output.episodes.emplace_back();
  given_up.episode.set_cause(v1::RecoveryEpisode::WORKER_EXIT);
  given_up.episode.set_abort_ms(5);
  output.queue_waits = {absl::Seconds(40)};
  CoreMetrics::Observe(output, metrics_);
  const std::string text = metrics_.Text();
  constexpr char kEpisodes[] = "ringmaster_recovery_episodes_total{cause=\"worker_exit\",result=";
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kEpisodes, "\"recovered\"} 1\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kEpisodes, "\"given_up\"} 1\n")));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_wait_seconds_bucket{le=\"15\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_wait_seconds_bucket{le=\"60\"} 1\n"));
}

TEST_F(CoreMetricsTest, HeartbeatAgesAreAMedianATailAndTheOldest) {
  constexpr char kAge[] = "ringmaster_worker_heartbeat_age_seconds{stat=";
  EXPECT_THAT(Publish({}), HasSubstr(absl::StrCat(kAge, "\"max\"} 0\n"))) << "no workers";
  CoreSnapshot snapshot;
  for (int i = 1; i <= 200; ++i) snapshot.heartbeat_ages.push_back(absl::Seconds(i));
  const std::string text = Publish(snapshot);
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kAge, "\"p50\"} 100\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kAge, "\"p99\"} 198\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kAge, "\"max\"} 200\n")));
  snapshot.heartbeat_ages.resize(1);
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(kAge, "\"p50\"} 1\n")));
}

TEST_F(CoreMetricsTest, CordonedWorkersAreCountedBesideTheirStates) {
  CoreSnapshot snapshot;
  EXPECT_THAT(Publish(snapshot), HasSubstr("ringmaster_workers_cordoned 0\n"));
  snapshot.workers[v1::Worker::ACTIVE] = 3;
  snapshot.cordoned_workers = 2;
  EXPECT_THAT(Publish(snapshot), HasSubstr("ringmaster_workers_cordoned 2\n"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("ringmaster_workers{state=\"active\"} 3\n"));
}

TEST_F(CoreMetricsTest, QueuesAreShownWhileTheyAreThere) {
  CoreSnapshot snapshot;
  snapshot.waiting = {{"WAITING_FOR_QUOTA", 2}, {"", 1}};
  snapshot.queues["vision"] = {
      .pending_jobs = 3, .admitted_jobs = 1, .held_workers = 6, .max_workers = 8};
  snapshot.queues["default"] = {.admitted_jobs = 4};
  const std::string text = Publish(snapshot);
  EXPECT_THAT(text, HasSubstr("ringmaster_jobs_waiting{reason=\"waiting_for_quota\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_jobs_waiting{reason=\"none\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_jobs{queue=\"vision\",state=\"pending\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_jobs{queue=\"vision\",state=\"admitted\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_held_workers{queue=\"vision\"} 6\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_max_workers{queue=\"vision\"} 8\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_queue_jobs{queue=\"default\",state=\"admitted\"} 4\n"));
  // Not a quota of 0 workers.
  EXPECT_THAT(text, Not(HasSubstr("ringmaster_queue_max_workers{queue=\"default\"}")));
  snapshot.queues.erase("vision");
  snapshot.waiting.clear();
  EXPECT_THAT(Publish(snapshot), Not(HasSubstr("vision")));
  EXPECT_THAT(metrics_.Text(), Not(HasSubstr("ringmaster_jobs_waiting{")));
}

TEST_F(CoreMetricsTest, SumsByReason) {
  CoreSnapshot snapshot;
  constexpr char kFailures[] = "ringmaster_checkpoint_failures_total{reason=";
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(kFailures, "\"write_error\"} 0\n")))
      << "increase() needs a value before the first";
  for (int i = 1; i <= 3; ++i) {
    ++snapshot.counters.checkpoint_failures["invalid_shard"];
    ++snapshot.counters.placement_attempts["PLACED"];
    ++snapshot.counters.worker_quarantines["NO_ABORT"];
    ++snapshot.counters.stale_reports["ring_join"];
    Publish(snapshot);
  }
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, HasSubstr(absl::StrCat(kFailures, "\"invalid_shard\"} 3\n")));
  EXPECT_THAT(text, HasSubstr("ringmaster_placement_attempts_total{result=\"placed\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_worker_quarantines_total{reason=\"no_abort\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("ringmaster_stale_messages_rejected_total{kind=\"ring_join\"} 3\n"));
}

TEST_F(CoreMetricsTest, AnEndedJobShowsItsLastValuesButNoRing) {
  CoreSnapshot snapshot;
  snapshot.ended_jobs.push_back(Stepped());
  const std::string text = Publish(snapshot);
  EXPECT_THAT(text, HasSubstr(absl::StrCat("ringmaster_job_step", kJob, " 7\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("ringmaster_job_loss", kJob, " 2.5\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("ringmaster_job_recovery_episodes", kJob, " 0\n")));
  EXPECT_THAT(text, Not(HasSubstr(absl::StrCat("ringmaster_ring_size", kJob))));
  EXPECT_THAT(text, Not(HasSubstr(absl::StrCat("ringmaster_job_tokens_per_second", kJob))));
  // It would seem to hang.
  EXPECT_THAT(text, Not(HasSubstr("ringmaster_job_last_step_timestamp_seconds{")));
  EXPECT_THAT(Publish({}), Not(HasSubstr(kJob)));
}

TEST_F(CoreMetricsTest, APausedJobDoesNotSeemToHang) {
  CoreSnapshot snapshot;
  v1::TrainingJob& job = snapshot.active_jobs.emplace_back(Stepped());
  job.mutable_status()->set_state(v1::TrainingJobStatus::PAUSED);
  const std::string since = absl::StrCat("ringmaster_job_last_step_timestamp_seconds", kJob, " ");
  EXPECT_THAT(Publish(snapshot), Not(HasSubstr(kJob)));
  job.mutable_status()->set_state(v1::TrainingJobStatus::QUEUED);
  job.mutable_resume_time()->set_seconds(5000);
  EXPECT_THAT(Publish(snapshot), HasSubstr(absl::StrCat(since, "5000\n")));
}

}  // namespace
}  // namespace ringmaster::coordinator
