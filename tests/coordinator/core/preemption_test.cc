#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/running_jobs.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

TEST(PreemptionTest, TheLowerJobWritesACheckpointAndGoesOnFromThereLater) {
  CoreDriver d;
  RunJob(d, "lower", -1, 2, 'a');
  d.Heard("a");
  ASSERT_TRUE(Submit(d, "higher", 0, 2).ok());
  EXPECT_EQ(d.StateOf("lower"), "PAUSING");
  EXPECT_THAT(d.Job("lower").status().state_reason(),
              HasSubstr("trainingJobs/higher of priority 0 takes its place"));
  EXPECT_EQ(d.Heard("a"), "FinishSteps");
  d.FinishRing("lower", 2);
  EXPECT_EQ(d.StateOf("lower"), "QUEUED");
  EXPECT_THAT(d.Job("lower").status().state_reason(), HasSubstr("trainingJobs/higher"));
  EXPECT_EQ(d.Job("lower").status().progress().step(), 2);
  EXPECT_EQ(d.Job("lower").status().episodes_count(), 0);
  EXPECT_EQ(d.StateOf("higher"), "STARTING");
  d.Form("higher");
  ASSERT_TRUE(Cancel(d, "higher").ok());
  for (int rank : {0, 1}) d.Aborted("higher", rank);
  EXPECT_EQ(d.StateOf("lower"), "STARTING");
  d.Form("lower", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("lower"), "RUNNING");
  EXPECT_EQ(d.Job("lower").status().progress().step(), 2);
}

TEST(PreemptionTest, WhoIsStopped) {
  struct Running {
    int32_t priority;
    int ring;
  };
  struct Row {
    const char* name;
    // From the oldest, called job-a, on.
    std::vector<Running> running;
    int idle;
    Running waits;
    Names stopped;
  };
  const std::vector<Row> rows = {
      {"the lowest", {{1, 1}, {0, 1}, {1, 1}}, 0, {2, 1}, {"job-b"}},
      {"of them the youngest", {{0, 1}, {0, 1}, {1, 1}}, 0, {2, 1}, {"job-b"}},
      {"as many as it takes", {{0, 1}, {1, 1}, {2, 1}}, 0, {3, 2}, {"job-a", "job-b"}},
      {"idle ones count", {{0, 1}, {1, 1}}, 1, {3, 2}, {"job-a"}},
      {"none in vain", {{0, 1}, {1, 2}}, 0, {3, 2}, {"job-b"}},
      {"not one that is alike", {{1, 1}}, 0, {1, 1}, {}},
      {"nor a higher one", {{2, 1}, {1, 1}}, 0, {1, 1}, {}},
      {"nor when it is not enough", {{0, 1}, {2, 1}}, 0, {1, 2}, {}},
  };
  const auto stopped = [](const Row& row, bool preemption) {
    CoreOptions options = CoreDriver::Options();
    options.preemption = preemption;
    CoreDriver d(options);
    char worker = 'a', job = 'a';
    for (const Running& running : row.running) {
      RunJob(d, std::string("job-") + job++, running.priority, running.ring, worker);
      worker = static_cast<char>(worker + running.ring);
    }
    for (int i = 0; i < row.idle; ++i, ++worker) d.Hello(std::string(1, worker), worker);
    EXPECT_TRUE(Submit(d, "waits", row.waits.priority, row.waits.ring).ok());
    return Pausing(d);
  };
  for (const Row& row : rows) {
    EXPECT_EQ(stopped(row, true), row.stopped) << row.name;
    EXPECT_EQ(stopped(row, false), Names()) << row.name;
  }
}

TEST(PreemptionTest, WorkersThatComeFreeAreCountedOn) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 0, 1, 'b');
  RunJob(d, "job-c", 0, 1, 'c');
  ASSERT_TRUE(Pause(d, "job-a").ok());
  ASSERT_TRUE(Submit(d, "first", 2, 1).ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  ASSERT_TRUE(Submit(d, "second", 1, 1).ok());
  EXPECT_EQ(Pausing(d), Names({"job-a", "job-c"}));
  d.Advance(absl::Seconds(10));
  EXPECT_EQ(Pausing(d), Names({"job-a", "job-c"})) << "nobody is stopped twice for one";
  d.FinishRing("job-c", 2);
  EXPECT_EQ(d.StateOf("first"), "STARTING") << "whichever comes first";
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("second"), "STARTING");
  EXPECT_EQ(d.StateOf("job-b"), "RUNNING");
}

// A checkpoint may take minutes, or hang.
TEST(PreemptionTest, WhoDoesNotStopInTimeIsNotCountedOnAnyMore) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", -1, 1, 'b');
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  d.Advance(absl::Minutes(10) - absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-b"}));
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-a", "job-b"}));
}

TEST(PreemptionTest, AJobBehindOneThatWaitsOnStopsNobody) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 9, 1, 'b');
  ASSERT_TRUE(Submit(d, "large", 2, 2).ok());
  ASSERT_TRUE(Submit(d, "small", 1, 1).ok());
  EXPECT_EQ(Pausing(d), Names()) << "what it stopped would be kept for the large one";
  ASSERT_TRUE(Cancel(d, "large").ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, AChangeOfPriorityStops) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  RunJob(d, "job-b", 2, 1, 'b');
  ASSERT_TRUE(Submit(d, "waits", 0, 1).ok());
  EXPECT_EQ(Pausing(d), Names());
  ASSERT_TRUE(Reprioritise(d, "waits", 1).ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
  EXPECT_EQ(Pausing(d), Names());
  ASSERT_TRUE(Reprioritise(d, "job-b", -1).ok());
  EXPECT_EQ(Pausing(d), Names({"job-b"}));
}

TEST(PreemptionTest, WhenNobodyTakesThePlaceItIsItsOwnAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  ASSERT_TRUE(Cancel(d, "waits").ok());
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Form("job-a", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

TEST(PreemptionTest, ARingThatBreaksBeforeStandsAndStopsAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1, 2).ok());
  d.Hello("c", 'c');
  d.Exit(d.WorkerAt("job-a", 1), 9);
  d.Aborted("job-a", 0, CoreDriver::Held(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c") << "a broken ring goes before the queue";
  d.Form("job-a", CoreDriver::Held(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("waits of priority 1"));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
}

TEST(PreemptionTest, AJobThatCannotWriteACheckpointGoesOnUntilItHasWrittenOne) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 1, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  d.FinishRing("job-a", 2, "no space left");
  d.Aborted("job-a", 0, CoreDriver::Held(2));
  d.Form("job-a", CoreDriver::Held(2));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_THAT(d.Job("job-a").status().episodes(0).message(), HasSubstr("no space left"));
  d.Step("job-a", 3);
  d.Advance(absl::Minutes(1));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Checkpoint("job-a", 3);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// It would write none before its end.
TEST(PreemptionTest, AJobThatWritesNoCheckpointsByItselfIsStoppedAgainAfterAPause) {
  CoreDriver d;
  d.Hello("a", 'a');
  v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest("job-a", 1);
  request.mutable_training_job()->mutable_spec()->mutable_checkpoint()->set_interval_steps(-1);
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  d.Form("job-a");
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  for (const int64_t step : {1, 2}) {
    ASSERT_EQ(Pausing(d), Names({"job-a"}));
    d.FinishRing("job-a", step, "no space left");
    d.Aborted("job-a", 0, CoreDriver::Held(step));
    d.Form("job-a", CoreDriver::Held(step));
  }
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Milliseconds(250));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, WhileTheStoreIsFullNobodyIsStopped) {
  CoreDriver d;
  d.Hello("a", 'a');
  ASSERT_TRUE(Submit(d, "job-a", 0, 1).ok());
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  d.Core().SetStoreFull(d.now(), true);
  d.Form("job-a");
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  // Nor one that broke while it stopped.
  d.Core().SetStoreFull(d.now(), true);
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(0));
  d.AwaitRetry();
  d.Form("job-a", CoreDriver::Held(0));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Core().SetStoreFull(d.now(), false);
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

v1::Hardware Big() {
  v1::Hardware hardware = CoreDriver::Cpu();
  hardware.set_threads(16);
  return hardware;
}

// A worker of this kind joins, and a job of it runs there.
void RunOn(CoreDriver& d, const v1::Hardware& hardware, const std::string& id, int32_t priority,
           char worker) {
  d.Hello(std::string(1, worker), worker, hardware);
  ASSERT_TRUE(Submit(d, id, priority).ok());
  d.Form(id);
  d.Step(id, 1);
  ASSERT_EQ(d.WorkerAt(id, 0), std::string(1, worker));
}

// One that big workers alone can do.
void SubmitLarge(CoreDriver& d, const std::string& id, int32_t priority) {
  v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest(id, 1);
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  request.mutable_training_job()->mutable_spec()->mutable_resources()->set_threads(8);
  d.Sleep(absl::Milliseconds(1));
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
}

// Of two that wait, only the lower one can use what the higher one could do with, too.
TEST(PreemptionTest, WhatWasStoppedForAJobItCountsOnFirst) {
  CoreDriver d;
  RunOn(d, Big(), "big-b", 0, 'a');
  RunOn(d, Big(), "big-c", 1, 'b');
  RunOn(d, CoreDriver::Cpu(), "small-a", -1, 'c');
  ASSERT_TRUE(Submit(d, "either", 5).ok());
  SubmitLarge(d, "large", 4);
  EXPECT_EQ(Pausing(d), Names({"big-b", "small-a"}));
}

// The higher one of two workers, which may be any, gets none that was freed for the other before.
TEST(PreemptionTest, WhatWasFreedForAnotherJobIsLeftToIt) {
  CoreDriver d;
  RunOn(d, Big(), "big-a", 0, 'a');
  RunOn(d, Big(), "big-b", 1, 'b');
  RunOn(d, CoreDriver::Cpu(), "small-c", -1, 'c');
  RunOn(d, CoreDriver::Cpu(), "small-d", -1, 'd');
  ASSERT_TRUE(Submit(d, "either", 5, 2).ok());
  SubmitLarge(d, "large", 4);
  const Names stopped = {"big-a", "small-c", "small-d"};
  ASSERT_EQ(Pausing(d), stopped);
  d.FinishRing("big-a", 2);
  EXPECT_EQ(d.StateOf("large"), "STARTING");
  EXPECT_EQ(Pausing(d), Names({"small-c", "small-d"}));
  d.FinishRing("small-c", 2);
  d.FinishRing("small-d", 2);
  EXPECT_EQ(d.StateOf("either"), "STARTING");
  EXPECT_EQ(d.StateOf("big-b"), "RUNNING");
}

// Both may have any, so that the higher one is placed first, whatever was stopped for whom.
TEST(PreemptionTest, WhatWasFreedForAJobBehindIsKeptForTheFirstWhenAllAreAlike) {
  CoreDriver d;
  for (const char worker : {'a', 'b', 'c'}) {
    RunOn(d, CoreDriver::Cpu(), std::string("low-") + worker, 0, worker);
  }
  ASSERT_TRUE(Submit(d, "first", 5, 2).ok());
  ASSERT_EQ(Pausing(d), Names({"low-b", "low-c"}));
  ASSERT_TRUE(Submit(d, "second", 4, 1).ok());
  ASSERT_EQ(Pausing(d), Names({"low-a", "low-b", "low-c"}));
  d.FinishRing("low-a", 2);
  EXPECT_EQ(d.StateOf("second"), "QUEUED");
  d.FinishRing("low-b", 2);
  EXPECT_EQ(d.StateOf("first"), "STARTING");
  d.FinishRing("low-c", 2);
  EXPECT_EQ(d.StateOf("second"), "STARTING");
}

// Most workers that would do are of a kind whose jobs may not be stopped.
TEST(PreemptionTest, AllKindsOfWorkersAreLookedAt) {
  CoreDriver d;
  for (const char worker : {'a', 'b', 'c'}) {
    RunOn(d, CoreDriver::Cpu(), std::string("high-") + worker, 9, worker);
  }
  d.set_version("2.0.0 (beef)");
  RunOn(d, CoreDriver::Cpu(), "low-d", 0, 'd');
  RunOn(d, CoreDriver::Cpu(), "low-e", 0, 'e');
  ASSERT_TRUE(Submit(d, "waits", 1, 2).ok());
  EXPECT_EQ(Pausing(d), Names({"low-d", "low-e"}));
  // Half of what it waits for is there: kept for it, not for who comes then.
  d.FinishRing("low-d", 2);
  ASSERT_TRUE(Submit(d, "behind", 0, 1).ok());
  EXPECT_EQ(d.StateOf("behind"), "QUEUED");
  d.FinishRing("low-e", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
}

TEST(PreemptionTest, NobodyIsStoppedInOneKindForWhatComesFreeInAnother) {
  CoreDriver d;
  for (const char worker : {'a', 'b'}) {
    RunOn(d, CoreDriver::Cpu(), std::string("low-") + worker, 0, worker);
  }
  d.set_version("2.0.0 (beef)");
  RunOn(d, CoreDriver::Cpu(), "pauses", 5, 'c');
  ASSERT_TRUE(Pause(d, "pauses").ok());
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  EXPECT_EQ(Pausing(d), Names({"pauses"}));
}

// Its ring breaks while it stops, and nobody waits for its place any more when it stands again;
// then somebody does.
TEST(PreemptionTest, WhoStoppedForNobodyAfterAllIsStoppedAgain) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1, 2).ok());
  ASSERT_EQ(Pausing(d), Names({"job-a"}));
  ASSERT_TRUE(Pause(d, "waits").ok());
  d.Hello("c", 'c');
  d.Exit(d.WorkerAt("job-a", 1), 9);
  d.Aborted("job-a", 0, CoreDriver::Held(1));
  d.Form("job-a", CoreDriver::Held(1));
  ASSERT_EQ(d.StateOf("job-a"), "RUNNING");
  ASSERT_TRUE(Resume(d, "waits").ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// Who is counted on stays so while its connection is mended.
TEST(PreemptionTest, WorkersThatAreGoneForAMomentAreCountedOn) {
  CoreDriver stopping;
  RunJob(stopping, "job-a", 0, 1, 'a');
  RunJob(stopping, "job-b", 0, 1, 'b');
  RunJob(stopping, "job-c", 9, 1, 'c');
  ASSERT_TRUE(Submit(stopping, "waits", 1, 1).ok());
  ASSERT_EQ(Pausing(stopping), Names({"job-b"}));
  stopping.Break("b");
  EXPECT_EQ(Pausing(stopping), Names({"job-b"}));

  CoreDriver idle;
  RunJob(idle, "job-a", 0, 1, 'a');
  RunJob(idle, "job-b", 0, 1, 'b');
  idle.Hello("c", 'c');
  ASSERT_TRUE(Submit(idle, "waits", 1, 2).ok());
  ASSERT_EQ(Pausing(idle), Names({"job-b"}));
  idle.Break("c");
  EXPECT_EQ(Pausing(idle), Names({"job-b"}));
  // Until it is given up.
  idle.Advance(absl::Seconds(5));
  EXPECT_EQ(Pausing(idle), Names({"job-a", "job-b"}));

  // Also where there are just as many as it takes.
  CoreDriver freed;
  RunJob(freed, "job-a", 0, 1, 'a');
  RunJob(freed, "job-b", 0, 1, 'b');
  ASSERT_TRUE(Submit(freed, "waits", 1, 2).ok());
  freed.FinishRing("job-a", 2);
  freed.Break("b");
  EXPECT_EQ(freed.StateOf("job-a"), "QUEUED");
  freed.Advance(absl::Seconds(5));
  EXPECT_EQ(freed.StateOf("job-a"), "STARTING");

  CoreDriver running;
  RunJob(running, "job-a", 0, 2, 'a');
  RunJob(running, "job-b", 0, 1, 'c');
  running.Break("b");
  ASSERT_TRUE(Submit(running, "waits", 1, 2).ok());
  EXPECT_EQ(Pausing(running), Names({"job-a"}));
}

TEST(PreemptionTest, AfterARestartNobodyIsStoppedUntilWorkersAreBack) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(1));
  ASSERT_TRUE(Submit(d, "first", 1, 1).ok());
  EXPECT_EQ(Pausing(d), Names());
  d.Hello("c", 'c');
  EXPECT_EQ(d.StateOf("first"), "STARTING");
  ASSERT_TRUE(Submit(d, "second", 1, 1).ok());
  d.Advance(absl::Seconds(9));
  EXPECT_EQ(Pausing(d), Names());
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// A higher job that loses a worker again and again, each time for a moment, would stop a lower one
// again and again.
TEST(PreemptionTest, AJobRunsForAWhileEachTimeBeforeItIsStopped) {
  CoreDriver d(WithMinRuntime());
  RunJob(d, "job-a", 0, 1, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
  d.Advance(absl::Seconds(59));
  EXPECT_EQ(Pausing(d), Names());
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  d.Form("waits");
  ASSERT_TRUE(Cancel(d, "waits").ok());
  d.Aborted("waits", 0);
  d.Form("job-a", CoreDriver::Held(2));
  ASSERT_TRUE(Submit(d, "again", 1, 1).ok());
  d.Advance(absl::Seconds(30));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  // A recovery is no new begin: a job that crashes often could never be stopped.
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(2));
  d.Form("job-a", CoreDriver::Held(2));
  d.Advance(absl::Seconds(29));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// It could be stopped each time before it runs.
TEST(PreemptionTest, ARingThatFormsIsLetRun) {
  CoreDriver d(WithMinRuntime());
  d.Hello("a", 'a');
  ASSERT_TRUE(Submit(d, "job-a", 0).ok());
  ASSERT_TRUE(Submit(d, "waits", 1).ok());
  d.Advance(absl::Seconds(20));
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
  d.Form("job-a");
  d.Advance(absl::Seconds(59));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

TEST(PreemptionTest, WhoHasHadItsTimeIsStoppedBeforeALowerOneThatHasNot) {
  CoreDriver d(WithMinRuntime());
  RunJob(d, "job-a", 1, 1, 'a');
  d.Advance(absl::Minutes(1));
  RunJob(d, "job-b", 0, 1, 'b');
  ASSERT_TRUE(Submit(d, "waits", 2, 1).ok());
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
}

// A new coordinator does not know for whom a job stops: what comes free is the next one's, and
// counts as coming free until then.
TEST(PreemptionTest, AfterARestartWhoStopsGoesOnStopping) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  RunJob(d, "job-b", -1, 1, 'c');
  ASSERT_TRUE(Submit(d, "waits", 1, 2).ok());
  ASSERT_EQ(Pausing(d), Names({"job-a"}));
  const v1::RingRef other = d.Ring("job-b", 0);
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(1));
  d.Hello("c", 'c', v1::PHASE_RUNNING, other, CoreDriver::Held(1));
  d.Advance(absl::Seconds(11));
  EXPECT_EQ(Pausing(d), Names({"job-a"}));
  d.FinishRing("job-a", 2);
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
  EXPECT_EQ(d.StateOf("job-b"), "RUNNING");
  EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("waits of priority 1 takes"));
}

TEST(PreemptionTest, NobodyIsStoppedUnlessOperatorsSwitchItOn) {
  CoreOptions options = CoreDriver::Options();
  options.preemption = CoreOptions().preemption;
  CoreDriver d(options);
  RunJob(d, "job-a", 0, 1, 'a');
  ASSERT_TRUE(Submit(d, "waits", 1000, 1).ok());
  EXPECT_EQ(Pausing(d), Names());
  // As nothing is freed for others, nobody has to look for it when too few are there.
  d.Break("a");
  auto attempts = d.Core().Snapshot(d.now()).counters.placement_attempts;
  EXPECT_EQ(attempts["NOT_ENOUGH_WORKERS"], 1);
}

}  // namespace
}  // namespace ringmaster::coordinator
