#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/rpc_status.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using Episode = v1::RecoveryEpisode;

// A member is gone, a pause is asked for, and nobody comes in its place.
void PauseWithoutReplacement(CoreDriver& d, int64_t step) {
  d.Exit(d.WorkerAt("job-a", 1), 9);
  ASSERT_TRUE(Pause(d).ok());
  d.Aborted("job-a", 0, CoreDriver::Held(step));
  d.Advance(absl::Minutes(11));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
}

const v1::RestorePlan& PlanHeardBy(CoreDriver& d, const std::string& worker) {
  d.Heard(worker);
  return d.Last(worker, v1::Directive::kConnectRing).connect_ring().restore();
}

TEST(PauseTest, ARunningJobWritesACheckpointAndFreesItsWorkers) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  d.Heard("a");
  d.Heard("b");
  const auto pausing = Pause(d);
  ASSERT_TRUE(pausing.ok()) << pausing.status();
  EXPECT_EQ(pausing->status().state(), v1::TrainingJobStatus::PAUSING);
  EXPECT_EQ(d.Heard("a"), "FinishSteps");
  EXPECT_EQ(d.Heard("b"), "FinishSteps");
  d.Step("job-a", 4);
  d.Checkpoint("job-a", 4);
  d.FinishAt("job-a", 0, 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  d.FinishAt("job-a", 1, 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_EQ(d.Heard("b"), "ReleaseJob");
  const v1::TrainingJob& job = d.Job("job-a");
  EXPECT_EQ(job.status().ranks_size(), 0);
  EXPECT_EQ(job.status().progress().step(), 4);
  EXPECT_EQ(job.status().progress().tokens_per_second(), 0);
  EXPECT_EQ(job.status().episodes_count(), 0);
  EXPECT_FALSE(job.has_end_time());
  // Others have the workers now.
  d.Create("job-b");
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
  EXPECT_EQ(Resume(d)->status().pending_reason().queue_position(), 1);
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  d.Hello("c", 'c');
  d.Hello("d", 'd');
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Join("job-a", 0);
  d.Join("job-a", 1);
  const v1::RestorePlan& plan = PlanHeardBy(d, "c");
  EXPECT_EQ(plan.source(), Episode::CHECKPOINT);
  EXPECT_EQ(plan.step(), 4);
  d.Ready("job-a", 0, CoreDriver::Held(4));
  d.Ready("job-a", 1, CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
}

TEST(PauseTest, AQueuedJobIsPassedOverUntilItIsResumed) {
  CoreDriver d;
  d.Create("job-a");
  d.Create("job-b");
  EXPECT_EQ(Pause(d)->status().state(), v1::TrainingJobStatus::PAUSED);
  EXPECT_FALSE(d.Job("job-a").status().has_pending_reason());
  EXPECT_EQ(d.Job("job-b").status().pending_reason().queue_position(), 1);
  const v1::TrainingJob back = *Resume(d);
  EXPECT_EQ(back.status().state(), v1::TrainingJobStatus::QUEUED);
  EXPECT_EQ(back.status().pending_reason().queue_position(), 1) << "the older one is first";
  EXPECT_TRUE(back.has_resume_time());
  ASSERT_TRUE(Pause(d).ok());
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_EQ(d.StateOf("job-b"), "STARTING");
}

TEST(PauseTest, TimeThatItWasPausedIsNoWait) {
  CoreDriver d;
  d.Create("job-a");
  ASSERT_TRUE(Pause(d).ok());
  d.Advance(absl::Hours(1));
  EXPECT_EQ(d.Core().Snapshot(d.now()).longest_queue_wait, absl::ZeroDuration());
  ASSERT_TRUE(Resume(d).ok());
  d.Advance(absl::Minutes(1));
  EXPECT_EQ(d.Core().Snapshot(d.now()).longest_queue_wait, absl::Minutes(1));
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_EQ(d.last().queue_waits.size(), 1);
  EXPECT_EQ(d.last().queue_waits[0], absl::Minutes(1));
}

TEST(PauseTest, ARingThatFormsIsLetFinish) {
  CoreDriver d;
  d.FormingPair();
  const auto asked = Pause(d);
  EXPECT_EQ(asked->status().state(), v1::TrainingJobStatus::STARTING);
  EXPECT_TRUE(asked->status().pause_requested());
  d.Heard("a");
  d.Form("job-a");
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  EXPECT_TRUE(d.Job("job-a").has_start_time());
  EXPECT_EQ(d.Heard("a"), "ConnectRing StartSteps FinishSteps");
  d.FinishRing("job-a", 1);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
}

// Survivors hold steps that no checkpoint has.
TEST(PauseTest, ARingThatRecoversDoesSoFirst) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  const std::string lost = d.WorkerAt("job-a", 1), left = d.WorkerAt("job-a", 0);
  d.Exit(lost, 9);
  EXPECT_EQ(Pause(d)->status().state(), v1::TrainingJobStatus::RECOVERING);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  d.Hello("c", 'c');
  d.Join("job-a", 0, CoreDriver::Held(3));
  d.Join("job-a", 1);
  EXPECT_EQ(PlanHeardBy(d, left).source(), Episode::PEER);
  d.Ready("job-a", 0, CoreDriver::Held(3));
  d.Ready("job-a", 1, CoreDriver::Held(3));
  EXPECT_EQ(d.Heard(left), "StartSteps FinishSteps");
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_TRUE(d.Job("job-a").status().episodes(0).finished());
}

TEST(PauseTest, WithoutReplacementItIsPausedAtTheNewestCheckpoint) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  PauseWithoutReplacement(d, 3);
  EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("no replacement came"));
}

TEST(PauseTest, ARingThatBreaksRecoversAndIsToldAgain) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 3);
  ASSERT_TRUE(Pause(d).ok());
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  d.Aborted("job-a", 1, CoreDriver::Held(3));
  d.Heard("a");
  d.Form("job-a", CoreDriver::Held(3));
  EXPECT_EQ(d.Heard("a"), "ConnectRing StartSteps FinishSteps");
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
}

// Whoever pauses a job may be about to stop its workers.
TEST(PauseTest, AMemberThatLeavesAfterTheCommitCostsNothing) {
  for (const bool killed : {true, false}) {
    CoreDriver d;
    d.RunningPair();
    ASSERT_TRUE(Pause(d).ok());
    d.Step("job-a", 4);
    d.Checkpoint("job-a", 4);
    d.FinishAt("job-a", 1, 4);
    const std::string leaves = d.WorkerAt("job-a", killed ? 0 : 1);
    if (killed) {
      d.Exit(leaves, 9);
    } else {
      v1::WorkerReport goodbye;
      goodbye.mutable_goodbye();
      d.Report(leaves, goodbye);
    }
    EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
    EXPECT_EQ(d.Job("job-a").status().episodes_count(), 0);
    EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
  }
}

TEST(PauseTest, APausedJobHasNoBudgetToRunOutOf) {
  CoreDriver d;
  d.RunningPair([](v1::TrainingJobSpec& spec) { spec.mutable_recovery()->set_episodes_max(1); });
  d.Step("job-a", 3);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  ASSERT_TRUE(Pause(d).ok());
  const auto aborted = [&d] {
    d.Aborted("job-a", 0, CoreDriver::Held(3));
    d.Aborted("job-a", 1, CoreDriver::Held(3));
  };
  aborted();
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("recovery.episodes_max (1)"));
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_TRUE(Resume(d).ok());
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING") << "the count begins anew";
}

TEST(PauseTest, StepsThatItLeavesBehindAreWrittenDown) {
  CoreDriver d;
  d.RunningPair([](v1::TrainingJobSpec& spec) { spec.mutable_recovery()->set_episodes_max(1); });
  d.Step("job-a", 3);
  const auto fails = [&d] {
    d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
    d.Aborted("job-a", 0, {});
    d.Aborted("job-a", 1, {});
  };
  fails();
  d.Form("job-a", CoreDriver::Held(0));
  d.Step("job-a", 1);
  ASSERT_TRUE(Pause(d).ok());
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  ASSERT_TRUE(Resume(d).ok());
  d.Form("job-a", CoreDriver::Held(0));
  const v1::TrainingJobStatus& status = d.Job("job-a").status();
  EXPECT_EQ(status.progress().step(), 0);
  ASSERT_EQ(status.episodes_size(), 1);
  EXPECT_EQ(status.episodes(0).lost_steps(), 3 + 1);
}

TEST(PauseTest, ARecoveryDoesNotLastWhileTheJobIsPaused) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 5);
  d.Checkpoint("job-a", 5);
  PauseWithoutReplacement(d, 5);
  d.Start();
  d.Advance(absl::Hours(24));
  d.Hello("c", 'c');
  d.Hello("d", 'd');
  ASSERT_TRUE(Resume(d).ok());
  d.Join("job-a", 0);
  d.Join("job-a", 1);
  d.Ready("job-a", 0, CoreDriver::Held(5));
  d.Ready("job-a", 1, CoreDriver::Held(5));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_LT(d.Job("job-a").status().episodes(0).form_ms(), 60'000);
}

TEST(PauseTest, AJobThatCannotWriteItsCheckpointGoesOn) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Pause(d).ok());
  d.FinishRing("job-a", 4, "no space left on device");
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_FALSE(d.Job("job-a").status().pause_requested());
  EXPECT_THAT(d.Job("job-a").status().episodes(0).message(),
              AllOf(HasSubstr("not paused"), HasSubstr("no space left on device")));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1, CoreDriver::Held(4));
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
}

TEST(PauseTest, ShardsNobodyHeardOfAreWrittenAgain) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Pause(d).ok());
  d.Step("job-a", 4);
  d.Shard("job-a", 0, 4);
  d.FinishAt("job-a", 0, 4);
  d.FinishAt("job-a", 1, 4);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_TRUE(d.Job("job-a").status().pause_requested());
}

TEST(PauseTest, TheCommitWaitsForRoomInTheStore) {
  CoreDriver d;
  d.RunningPair();
  d.Core().SetStoreFull(d.now(), true);
  EXPECT_EQ(Pause(d).status().code(), absl::StatusCode::kUnavailable);
  d.Core().SetStoreFull(d.now(), false);
  ASSERT_TRUE(Pause(d).ok());
  d.Core().SetStoreFull(d.now(), true);
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
}

TEST(PauseTest, ResumedBeforeItsRingHasStoppedItIsQueued) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Pause(d).ok());
  const auto resumed = Resume(d);
  EXPECT_EQ(resumed->status().state(), v1::TrainingJobStatus::PAUSING);
  EXPECT_FALSE(resumed->status().pause_requested());
  d.Heard("a");
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
}

TEST(PauseTest, APauseWithdrawnInTimeChangesNothing) {
  CoreDriver d;
  d.FormingPair();
  ASSERT_TRUE(Pause(d).ok());
  ASSERT_TRUE(Resume(d).ok());
  d.Heard("a");
  d.Form("job-a");
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(d.Heard("a"), "ConnectRing StartSteps");
  EXPECT_FALSE(d.Job("job-a").has_resume_time());
}

TEST(PauseTest, ItsEtagChangesWithWhatWasAskedFor) {
  CoreDriver d;
  d.FormingPair();
  const std::string before = d.Job("job-a").etag();
  const std::string asked = Pause(d)->etag();
  EXPECT_NE(asked, before);
  auto resume = Of<v1::ResumeTrainingJobRequest>(d);
  resume.set_etag(before);
  EXPECT_EQ(d.Call<v1::TrainingJob>(resume).status().code(), absl::StatusCode::kAborted);
  EXPECT_NE(Resume(d)->etag(), asked);
}

TEST(PauseTest, AJobThatReachesItsLastStepSucceeds) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Pause(d).ok());
  d.FinishRing("job-a", 10);
  EXPECT_EQ(d.StateOf("job-a"), "SUCCEEDED");
  EXPECT_FALSE(d.Job("job-a").status().pause_requested());
}

TEST(PauseTest, ItSurvivesTheCoordinator) {
  CoreDriver d;
  d.RunningPair();
  ASSERT_TRUE(Pause(d).ok());
  const std::string member = d.WorkerAt("job-a", 0);
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(3));
  EXPECT_EQ(d.Heard(member), "Welcome FinishSteps") << "perhaps nobody had heard of it";
  d.FinishRing("job-a", 4);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  d.Start();
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  EXPECT_EQ(d.StateOf("job-a"), "PAUSED");
  ASSERT_TRUE(Resume(d).ok());
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
}

TEST(PauseTest, APausedJobIsCancelledAtOnce) {
  CoreDriver d;
  d.Create("job-a");
  ASSERT_TRUE(Pause(d).ok());
  EXPECT_EQ(Cancel(d)->status().state(), v1::TrainingJobStatus::CANCELLED);
  for (const absl::Status& status : {Pause(d).status(), Resume(d).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(Details(status).reason, "JOB_ENDED");
  }
}

TEST(PauseTest, RequestsAreHeededOnce) {
  CoreDriver d;
  d.Create("job-a");
  auto pause = Of<v1::PauseTrainingJobRequest>(d);
  pause.set_request_id("6a7d5f10-3c3c-4b3e-9a53-2f6e0f1f7a01");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(pause).ok());
  ASSERT_TRUE(Pause(d).ok()) << "asked for already";
  ASSERT_TRUE(Resume(d).ok());
  ASSERT_TRUE(Resume(d).ok()) << "it goes on already";
  EXPECT_EQ(d.Call<v1::TrainingJob>(pause)->status().state(), v1::TrainingJobStatus::QUEUED)
      << "the same request, told again";
  // One that found nothing to do is told again just so.
  auto resume = Of<v1::ResumeTrainingJobRequest>(d);
  resume.set_request_id("6a7d5f10-3c3c-4b3e-9a53-2f6e0f1f7a02");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(resume).ok());
  ASSERT_TRUE(Pause(d).ok());
  EXPECT_EQ(d.Call<v1::TrainingJob>(resume)->status().state(), v1::TrainingJobStatus::PAUSED);
  pause.clear_request_id();
  pause.set_etag("\"old\"");
  EXPECT_EQ(d.Call<v1::TrainingJob>(pause).status().code(), absl::StatusCode::kAborted);
  pause.clear_etag();
  d.Do(DrainRequested{});
  EXPECT_EQ(d.Call<v1::TrainingJob>(pause).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ringmaster::coordinator
