#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/core/core_driver.h"
#include "tests/coordinator/core/job_requests.h"
#include "tests/coordinator/core/running_jobs.h"

// Rings that look for a member, among jobs that stop for others.
namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

// A broken ring goes before the queue, but what was freed for a job above it is not there for it:
// another one would have to be stopped.
TEST(PreemptionRingTest, ALowerRingThatLooksForAMemberLeavesWhatWasFreedForAHigherJob) {
  for (const int32_t priority : {0, 1}) {
    CoreDriver d;
    RunJob(d, "broken", priority, 2, 'a');
    RunJob(d, "lower", -1, 1, 'c');
    RunJob(d, "other", -1, 1, 'd');
    ASSERT_TRUE(Submit(d, "waits", 1, 1).ok());
    ASSERT_EQ(Pausing(d), Names({"other"}));
    d.Exit("b", 9);
    d.Aborted("broken", 0, CoreDriver::Held(1));
    d.FinishRing("other", 2);
    if (priority == 0) {
      ASSERT_EQ(d.StateOf("waits"), "STARTING");
      EXPECT_EQ(d.WorkerAt("waits", 0), "d");
      EXPECT_EQ(Pausing(d), Names());
      d.Hello("e", 'e');
      EXPECT_EQ(d.WorkerAt("broken", 1), "e");
    } else {
      EXPECT_EQ(d.WorkerAt("broken", 1), "d");
      EXPECT_EQ(d.StateOf("waits"), "QUEUED");
    }
  }
}

// They stop for the same job, and the sooner it stands the sooner that has both.
TEST(PreemptionRingTest, ARingThatBrokeWhileItStoppedUsesWhatWasFreedForTheSameJob) {
  CoreDriver d;
  RunJob(d, "job-a", 0, 2, 'a');
  RunJob(d, "job-b", 0, 1, 'c');
  RunJob(d, "job-c", 9, 1, 'd');
  ASSERT_TRUE(Submit(d, "waits", 1, 3).ok());
  ASSERT_EQ(Pausing(d), Names({"job-a", "job-b"}));
  d.FinishRing("job-b", 2);
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Form("job-a", CoreDriver::Held(1));
  d.FinishRing("job-a", 2);
  d.Hello("e", 'e');
  EXPECT_EQ(d.StateOf("waits"), "STARTING");
}

// As with what is kept for a job of the queue: without enough workers it holds up nobody.
TEST(PreemptionRingTest, WhatWasFreedForAJobThatCanNotHaveEnoughIsThereForABrokenRing) {
  CoreDriver d;
  RunJob(d, "broken", 0, 2, 'a');
  for (const char worker : {'c', 'd', 'e'}) {
    RunJob(d, std::string("low-") + worker, -1, 1, worker);
  }
  ASSERT_TRUE(Submit(d, "waits", 1, 3).ok());
  ASSERT_EQ(Pausing(d), Names({"low-c", "low-d", "low-e"}));
  d.Exit("b", 9);
  d.Aborted("broken", 0, CoreDriver::Held(1));
  d.FinishRing("low-d", 2);
  ASSERT_TRUE(Cancel(d, "low-d").ok());
  d.Exit("c", 9);
  EXPECT_EQ(d.WorkerAt("broken", 1), "b");
  d.Exit("e", 9);
  EXPECT_EQ(d.WorkerAt("broken", 1), "d");
}

TEST(PreemptionRingTest, WhatWasFreedForAJobThatWasPlacedElsewhereIsThereForAll) {
  CoreDriver d;
  RunJob(d, "broken", 0, 2, 'a');
  for (const char worker : {'c', 'd'}) RunJob(d, std::string("low-") + worker, -1, 1, worker);
  ASSERT_TRUE(Submit(d, "waits", 1, 2).ok());
  d.FinishRing("low-c", 2);
  ASSERT_TRUE(Cancel(d, "low-c").ok());
  d.set_version("2.0.0 (beef)");
  for (const char worker : {'e', 'f'}) d.Hello(std::string(1, worker), worker);
  d.Form("waits");
  d.Exit(d.WorkerAt("waits", 1), 9);
  d.Aborted("waits", 0, CoreDriver::Held(0));
  ASSERT_EQ(d.StateOf("waits"), "RECOVERING");
  d.Exit(d.WorkerAt("broken", 1), 9);
  d.Aborted("broken", 0, CoreDriver::Held(1));
  EXPECT_EQ(d.WorkerAt("broken", 1), "c");
}

TEST(PreemptionRingTest, OfRingsThatLookForAMemberTheHigherOneGetsIt) {
  CoreDriver d;
  RunJob(d, "older", 0, 2, 'a');
  RunJob(d, "higher", 1, 2, 'c');
  for (const char* worker : {"b", "d"}) d.Exit(worker, 9);
  d.Aborted("older", 0, CoreDriver::Held(1));
  d.Aborted("higher", 0, CoreDriver::Held(1));
  d.Hello("e", 'e');
  EXPECT_EQ(d.WorkerAt("higher", 1), "e");
  EXPECT_EQ(d.StateOf("older"), "RECOVERING");
}

// "higher" of two workers, one of which is killed, and "lower" of one, with who may stop whom.
void BreakHigher(CoreDriver& d, int32_t lower = 0) {
  RunJob(d, "higher", 1, 2, 'a');
  RunJob(d, "lower", lower, 1, 'c');
  d.Exit("b", 9);
  d.Aborted("higher", 0, CoreDriver::Held(1));
  ASSERT_EQ(Pausing(d), Names()) << "it may be back at once";
}

TEST(PreemptionRingTest, ARingThatFindsNoMemberHasALowerJobStopped) {
  CoreDriver d;
  BreakHigher(d);
  d.Advance(absl::Seconds(9));
  EXPECT_EQ(Pausing(d), Names());
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(Pausing(d), Names({"lower"}));
  EXPECT_THAT(d.Job("lower").status().state_reason(), HasSubstr("higher of priority 1"));
  d.FinishRing("lower", 2);
  EXPECT_EQ(d.WorkerAt("higher", 1), "c");
  EXPECT_EQ(d.StateOf("lower"), "QUEUED");
}

// What a ring that cannot have enough keeps for itself is there for a job above it.
TEST(PreemptionRingTest, ANewJobAboveARingThatLooksForMembersHasALowerJobStopped) {
  CoreDriver d;
  RunJob(d, "broken", 1, 3, 'a');
  RunJob(d, "lower", 0, 1, 'd');
  for (const char* worker : {"b", "c"}) d.Exit(worker, 9);
  d.Aborted("broken", 0, CoreDriver::Held(1));
  d.Advance(absl::Seconds(10));
  ASSERT_EQ(Pausing(d), Names());
  ASSERT_TRUE(Submit(d, "waits", 2).ok());
  EXPECT_EQ(Pausing(d), Names({"lower"}));
}

TEST(PreemptionRingTest, ARingWhoseMemberIsBackSoonHasNobodyStopped) {
  CoreDriver back;
  BreakHigher(back);
  back.Advance(absl::Seconds(9));
  back.Hello("b", 'd');
  back.Form("higher", CoreDriver::Held(1));
  back.Advance(absl::Seconds(30));
  EXPECT_EQ(Pausing(back), Names());
  CoreDriver alike;
  BreakHigher(alike, 1);
  alike.Advance(absl::Seconds(30));
  EXPECT_EQ(Pausing(alike), Names());
  ASSERT_TRUE(Reprioritise(alike, "higher", 2).ok());
  EXPECT_EQ(Pausing(alike), Names({"lower"}));
}

// Else the ring, though lower, would have it stopped, and the job above it nobody.
TEST(PreemptionRingTest, AmongRingsAndJobsThatWaitTheHighestHasOthersStopped) {
  CoreDriver d(WithMinRuntime());
  BreakHigher(d);
  ASSERT_TRUE(Submit(d, "waits", 2, 1).ok());
  d.Advance(absl::Minutes(1));
  EXPECT_THAT(d.Job("lower").status().state_reason(), HasSubstr("waits of priority 2"));
}

}  // namespace
}  // namespace ringmaster::coordinator
