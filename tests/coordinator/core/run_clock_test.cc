#include "coordinator/core/run_clock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "coordinator/core/times.h"
#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::StrEq;

void RunningPairOfAnHour(CoreDriver& d) {
  d.RunningPair([](auto& spec) { spec.mutable_max_runtime()->set_seconds(3600); });
  d.Step("job-a", 3);
}

absl::Duration RunTime(CoreDriver& d) { return FromProto(d.Job("job-a").status().run_duration()); }

void RecoverAt(CoreDriver& d, int64_t step) {
  d.Aborted("job-a", 0, CoreDriver::Held(step));
  d.Aborted("job-a", 1, CoreDriver::Held(step));
  d.Form("job-a", CoreDriver::Held(step));
}

TEST(RunClockTest, AJobWhoseTimeIsOverWritesACheckpointAndFails) {
  CoreDriver d;
  RunningPairOfAnHour(d);
  d.Advance(absl::Hours(1) - absl::Milliseconds(250));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Heard("a");
  d.Advance(absl::Milliseconds(250));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
  EXPECT_EQ(d.Job("job-a").status().state_reason(), "its max_runtime of 1h is over");
  EXPECT_EQ(d.Heard("a"), "FinishSteps");
  d.Advance(absl::Minutes(1));
  d.FinishRing("job-a", 4);
  const v1::TrainingJobStatus& status = d.Job("job-a").status();
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(status.failure_class(), v1::MAX_RUNTIME_REACHED);
  EXPECT_EQ(status.state_reason(),
            "its max_runtime of 1h is over after step 4 of 10; the newest checkpoint is "
            "projects/default/trainingJobs/job-a/checkpoints/step-4");
  EXPECT_EQ(RunTime(d), absl::Hours(1)) << "the checkpoint's time is not counted";
  EXPECT_EQ(d.Heard("a"), "CheckpointCommitted ReleaseJob");
  EXPECT_EQ(d.Core().NextTick(), d.now() + CoreDriver::Options().heartbeat_interval);
}

TEST(RunClockTest, OnlyRunningIsCounted) {
  struct Row {
    const char* name;
    // With a job that runs, for so long after it the job is RUNNING again.
    std::function<void(CoreDriver&)> meanwhile;
    absl::Duration counted = absl::ZeroDuration();
  };
  const std::vector<Row> rows = {
      {"it steps",
       [](CoreDriver& d) {
         for (int64_t step = 4; step < 8; ++step) {
           d.Advance(absl::Minutes(5));
           d.Step("job-a", step);
         }
       },
       absl::Minutes(20)},
      {"its step takes long", [](CoreDriver& d) { d.Advance(absl::Minutes(20)); },
       absl::Minutes(20)},
      {"it recovers",
       [](CoreDriver& d) {
         d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
         d.Advance(absl::Seconds(5));
         RecoverAt(d, 3);
       }},
      {"it is paused",
       [](CoreDriver& d) {
         EXPECT_EQ(Pause(d).status(), absl::OkStatus());
         d.Advance(absl::Minutes(1));
         d.FinishRing("job-a", 4);
         d.Advance(absl::Hours(2));
         EXPECT_EQ(Resume(d).status(), absl::OkStatus());
         d.Advance(absl::Seconds(20));
         d.Form("job-a", CoreDriver::Held(4));
       }},
      {"nobody counts",
       [](CoreDriver& d) {
         d.Sleep(absl::Hours(2));
         d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(3));
       }},
      // But for the interval in which a call was due.
      {"the coordinator stands still",
       [](CoreDriver& d) {
         d.Tick();
         d.Sleep(absl::Hours(2));
         d.Tick();
       },
       CoreDriver::Options().heartbeat_interval},
  };
  for (const Row& row : rows) {
    CoreDriver d;
    d.Advance(absl::Minutes(30));
    RunningPairOfAnHour(d);
    row.meanwhile(d);
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING") << row.name;
    d.Advance(absl::Minutes(10));
    EXPECT_EQ(RunTime(d), row.counted + absl::Minutes(10)) << row.name;
  }
}

// The ring trains while it is.
TEST(RunClockTest, ACoordinatorThatIsAlwaysLateCountsMostOfTheTime) {
  CoreDriver d;
  d.Advance(absl::Minutes(30));
  RunningPairOfAnHour(d);
  for (int i = 0; i < 60; ++i) {
    d.Sleep(absl::Seconds(3));
    d.Tick();
    d.Advance(absl::Milliseconds(250));
  }
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_GT(RunTime(d), absl::Minutes(2));
}

TEST(RunClockTest, HowItEndsWhateverComes) {
  struct Row {
    const char* name;
    // With a job whose time is over and whose ring was told to finish.
    std::function<void(CoreDriver&)> comes;
    const char* state;
    testing::Matcher<std::string> reason;
  };
  const std::vector<Row> rows = {
      {"it was the last step", [](CoreDriver& d) { d.FinishRing("job-a", 10); }, "SUCCEEDED",
       StrEq("")},
      {"no checkpoint can be written",
       [](CoreDriver& d) {
         d.Shard("job-a", 0, 4);
         d.Shard("job-a", 1, 4, "no space left on device");
         d.FinishAt("job-a", 0, 4, "no space left on device");
         d.FinishAt("job-a", 1, 4, "no space left on device");
       },
       "FAILED", HasSubstr("is none; another one could not be written: no space left on device")},
      {"its ring breaks",
       [](CoreDriver& d) {
         d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
         RecoverAt(d, 3);
         EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
         d.FinishRing("job-a", 4);
       },
       "FAILED", HasSubstr("after step 4 of 10")},
      {"nobody comes for a lost worker",
       [](CoreDriver& d) {
         d.Exit(d.WorkerAt("job-a", 1), 9);
         d.Aborted("job-a", 0, CoreDriver::Held(3));
         d.Advance(absl::Minutes(11));
       },
       "FAILED", HasSubstr("is none; no replacement came within 10m")},
      {"it is to be resumed",
       [](CoreDriver& d) {
         EXPECT_EQ(Resume(d).status(), absl::OkStatus());
         d.FinishRing("job-a", 4);
       },
       "FAILED", StartsWith("its max_runtime")},
      {"it is to be paused",
       [](CoreDriver& d) {
         EXPECT_EQ(Pause(d).status(), absl::OkStatus());
         d.FinishRing("job-a", 4);
         EXPECT_FALSE(d.Job("job-a").status().pause_requested());
       },
       "FAILED", StartsWith("its max_runtime")},
      {"it is cancelled",
       [](CoreDriver& d) {
         EXPECT_EQ(Cancel(d).status(), absl::OkStatus());
         d.Aborted("job-a", 0);
         d.Aborted("job-a", 1);
       },
       "CANCELLED", HasSubstr("cancelled")},
      {"the coordinator restarts",
       [](CoreDriver& d) {
         const std::string member = d.WorkerAt("job-a", 0);
         d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(3));
         EXPECT_EQ(d.Heard(member), "Welcome FinishSteps");
         d.FinishRing("job-a", 4);
       },
       "FAILED", StartsWith("its max_runtime")},
  };
  for (const Row& row : rows) {
    CoreDriver d;
    RunningPairOfAnHour(d);
    d.Advance(absl::Hours(1));
    ASSERT_EQ(d.StateOf("job-a"), "PAUSING") << row.name;
    row.comes(d);
    const v1::TrainingJobStatus& status = d.Job("job-a").status();
    EXPECT_EQ(d.StateOf("job-a"), row.state) << row.name;
    EXPECT_THAT(status.state_reason(), row.reason) << row.name;
    const bool failed = status.state() == v1::TrainingJobStatus::FAILED;
    EXPECT_EQ(status.failure_class() == v1::MAX_RUNTIME_REACHED, failed) << row.name;
  }
}

// Its clock may strike, and its ring break, in one breath.
TEST(RunClockTest, ARecoveredRingThatHasNoTimeLeftFinishes) {
  CoreDriver d;
  RunningPairOfAnHour(d);
  d.Advance(absl::Hours(1) - absl::Milliseconds(250));
  d.Sleep(absl::Milliseconds(250));
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Tick();
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  RecoverAt(d, 3);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

TEST(RunClockTest, ARingIsNotStoppedForACheckpointThatHasNoRoom) {
  CoreDriver d;
  RunningPairOfAnHour(d);
  d.Core().SetStoreFull(d.now(), true);
  d.Advance(absl::Hours(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Core().SetStoreFull(d.now(), false);
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

// The disk may be full again when the clock strikes next.
TEST(RunClockTest, ARingIsStoppedAsSoonAsThereIsRoom) {
  CoreDriver d;
  RunningPairOfAnHour(d);
  d.Core().SetStoreFull(d.now(), true);
  d.Advance(absl::Hours(2) + absl::Milliseconds(500));
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

// Without a step that would be stored.
TEST(RunClockTest, ARestartForgetsAMinuteAtMost) {
  CoreDriver d;
  RunningPairOfAnHour(d);
  for (int life = 1; life <= 3; ++life) {
    d.Advance(absl::Minutes(10) + absl::Seconds(30));
    d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(3));
    EXPECT_EQ(RunTime(d), life * absl::Minutes(10));
  }
  d.Advance(absl::Minutes(30));
  EXPECT_EQ(d.StateOf("job-a"), "PAUSING");
}

TEST(RunClockTest, WithoutALimitItIsCountedOnly) {
  CoreDriver d;
  d.RunningPair();
  d.Advance(absl::Hours(5));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_EQ(RunTime(d), absl::Hours(5));
}

}  // namespace
}  // namespace ringmaster::coordinator
