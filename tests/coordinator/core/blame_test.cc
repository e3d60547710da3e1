// Who is to blame for a failed attempt: the job, or a worker that took a place in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using testing::HasSubstr;

// Of workers a and b, b is killed after step 4; the idle worker c takes its place as rank 1.
void ReplaceBByC(CoreDriver& d) {
  d.RunningPair();
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  ASSERT_EQ(d.Job("job-a").status().generation(), 2);
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
}

// Workers a, b and c run job-a and have done step 4.
void RunningThree(CoreDriver& d) {
  for (const char c : {'a', 'b', 'c'}) d.Hello(std::string(1, c), c);
  d.Create("job-a", 3);
  d.Form("job-a");
  d.Step("job-a", 4);
}

// Of the three, c is killed; the idle worker e takes its place as rank 2.
void ReplaceCByE(CoreDriver& d) {
  RunningThree(d);
  d.Hello("e", 'e');
  d.Exit("c", 9);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 2), "e");
}

// Of the three, b and c are killed; e and f take their places.
void ReplaceBAndC(CoreDriver& d) {
  RunningThree(d);
  for (const char* worker : {"b", "c"}) d.Exit(worker, 9);
  d.Hello("e", 'e');
  d.Hello("f", 'f');
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 1), "e");
  ASSERT_EQ(d.WorkerAt("job-a", 2), "f");
}

TEST(BlameTest, ASpareThatLacksSomethingIsPassedOver) {
  for (const auto& [kind, deterministic] :
       {std::pair(v1::Fault::FORM_ERROR, true), std::pair(v1::Fault::DATA_ERROR, true),
        std::pair(v1::Fault::DATA_ERROR, false), std::pair(v1::Fault::OUT_OF_MEMORY_ERROR, false),
        std::pair(v1::Fault::EXCEPTION, false), std::pair(v1::Fault::CHECKPOINT_ERROR, false)}) {
    SCOPED_TRACE(v1::Fault::Kind_Name(kind));
    CoreDriver d;
    ReplaceBByC(d);
    d.Hello("e", 'e');
    d.Join("job-a", 0, CoreDriver::Held(4));
    d.Heard("c");
    d.Fail("job-a", 1, kind, deterministic);
    EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
    EXPECT_EQ(d.Heard("c"), "ReleaseJob");
    EXPECT_EQ(d.Core().Snapshot(d.now()).counters.worker_quarantines,
              (std::map<std::string, int64_t>{{v1::Fault::Kind_Name(kind), 1}}));
    d.Aborted("job-a", 0, CoreDriver::Held(4));
    d.Advance(absl::Seconds(1));
    ASSERT_EQ(d.Job("job-a").status().generation(), 3);
    EXPECT_EQ(d.WorkerAt("job-a", 0), "a");
    EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
    d.Form("job-a", CoreDriver::Held(4));
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
    EXPECT_EQ(d.Job("job-a").status().progress().step(), 4);
  }
}

TEST(BlameTest, WithoutAnotherSpareTheJobWaitsAndSaysWhy) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "WAITING_FOR_REPLACEMENT");
  EXPECT_THAT(d.Job("job-a").status().pending_reason().message(), HasSubstr("workers/c (rank 1)"));
  // Its mount is mended, and it was restarted.
  d.Exit("c", 15);
  d.Hello("c", 'C');
  EXPECT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
}

TEST(BlameTest, AfterAWhileItIsTriedAgain) {
  CoreDriver d;
  d.RunningPair(
      [](auto& spec) { spec.mutable_recovery()->mutable_rejoin_timeout()->set_seconds(3600); });
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Minutes(5) - absl::Seconds(1));
  EXPECT_EQ(d.Job("job-a").status().generation(), 2);
  d.Advance(absl::Seconds(2));
  EXPECT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
}

// The driver may still hold a dead process's memory when its successor comes.
TEST(BlameTest, WhatMayPassIsTriedAgainWhenThereIsNobodyElse) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Hello("b", 'B');
  ASSERT_EQ(d.Job("job-a").status().generation(), 2);
  d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1);
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.Job("job-a").status().generation(), 3);
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

TEST(BlameTest, InTheQueueTheJobPassesItOverToo) {
  CoreDriver d;
  d.RunningPair(
      [](auto& spec) { spec.mutable_recovery()->mutable_rejoin_timeout()->set_seconds(60); });
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Minutes(5) - absl::Seconds(1));
  EXPECT_EQ(d.StateOf("job-a"), "QUEUED");
  EXPECT_EQ(d.Job("job-a").status().pending_reason().code(), "WORKERS_UNSUITABLE");
  EXPECT_THAT(d.Job("job-a").status().pending_reason().message(),
              HasSubstr("at most 1 are suitable: 1 with a failed attempt at this job"));
  d.Advance(absl::Seconds(2));
  EXPECT_EQ(d.StateOf("job-a"), "STARTING");
}

// Both members are killed, and their successors find that the data is gone: nobody is left who
// could say that it is theirs alone, but both say it.
TEST(BlameTest, WhereAllAreNewItIsTheJob) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("a", 9);
  d.Exit("b", 9);
  d.Hello("a", 'A');
  d.Hello("b", 'B');
  d.Fail("job-a", 1, v1::Fault::DATA_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::DATA);
}

// Their files differ, and nobody knows which are the job's.
TEST(BlameTest, WhereAllAreNewNobodyIsTheUnlikeOne) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  for (const char* worker : {"a", "b"}) d.Exit(worker, 9);
  d.Hello("a", 'A');
  d.Hello("b", 'B');
  d.Fail("job-a", 1, v1::Fault::DATA_ERROR, /*deterministic=*/true, {0});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
}

// It may be chosen again by the time that the others have aborted; but it is not, while somebody
// else is there who has not failed.
TEST(BlameTest, AnotherSpareComesFirst) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
  d.Advance(absl::Milliseconds(500));
  d.Hello("e", 'e');
  d.Advance(absl::Seconds(2));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  ASSERT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
}

// Two places are free, and only one idle worker has not failed; those that have share a host with
// the member, which it does not.
TEST(BlameTest, WhoHasFailedFillsUpOnly) {
  CoreDriver d;
  ReplaceBAndC(d);
  for (const int rank : {1, 2}) d.Fail("job-a", rank, v1::Fault::OUT_OF_MEMORY_ERROR);
  v1::Hardware elsewhere = CoreDriver::Cpu();
  elsewhere.set_host("elsewhere");
  d.Hello("g", 'd', elsewhere);
  d.Advance(absl::Seconds(2));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  ASSERT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_TRUE(d.WorkerAt("job-a", 1) == "g" || d.WorkerAt("job-a", 2) == "g");
}

// Other jobs may use it.
TEST(BlameTest, IsOfOneJob) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Create("job-b", 1);
  EXPECT_EQ(d.Job("job-b").status().generation(), 1);
  EXPECT_EQ(d.WorkerAt("job-b", 0), "c");
}

// The files differ, say all ranks; those that have run the job saw the right ones.
TEST(BlameTest, WhatAllRanksTellSpeaksAgainstTheNewcomer) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  d.Form("job-a", CoreDriver::Held(4));
  d.Heard("c");
  for (const int rank : {0, 1}) {
    d.Fail("job-a", rank, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1 - rank});
  }
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_THAT(d.Job("job-a").status().episodes().rbegin()->lost_workers(),
              testing::Each(testing::StartsWith("workers/")));
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
}

// Of three, two tell of the third, which is let go at the first word.
TEST(BlameTest, WhoIsGoneIsNotBlamedAgain) {
  CoreDriver d;
  ReplaceCByE(d);
  for (const int rank : {0, 1}) {
    d.Fail("job-a", rank, v1::Fault::DATA_ERROR, /*deterministic=*/true, {2});
    EXPECT_EQ(d.StateOf("job-a"), "RECOVERING") << "rank " << rank;
  }
  EXPECT_THAT(d.Job("job-a").status().episodes().rbegin()->lost_workers(),
              testing::ElementsAre("workers/c", "workers/e"));
}

// On another host, where those that have run the job use loopback; or with other files in the job's
// directory.
TEST(BlameTest, WhoDoesNotFitTheOthersIsPassedOver) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  d.Form("job-a", CoreDriver::Held(4));
  d.Heard("c");
  d.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Heard("c"), "ReleaseJob");
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
  // Whom there is not is nobody.
  CoreDriver of_nobody;
  ReplaceBByC(of_nobody);
  of_nobody.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true, {2});
  EXPECT_EQ(of_nobody.StateOf("job-a"), "FAILED");
}

// Three of which one is new: those that have run the job do not fit each other any more.
TEST(BlameTest, ANewcomerIsNotBlamedForWhatTheOthersSayOfEachOther) {
  CoreDriver d;
  ReplaceCByE(d);
  d.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
}

// Of two newcomers one has other files. The other tells it first, of the one that differs from it.
TEST(BlameTest, OfTwoNewcomersTheUnlikeOneIsPassedOver) {
  CoreDriver d;
  ReplaceBAndC(d);
  d.Heard("e");
  d.Heard("f");
  d.Fail("job-a", 1, v1::Fault::DATA_ERROR, /*deterministic=*/true, {2});
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true, {2});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  EXPECT_EQ(d.Heard("e"), "AbortRing");
  EXPECT_EQ(d.Heard("f"), "ReleaseJob");
}

// Each of them tells its own lack; none is asked again to find out.
TEST(BlameTest, AllThatLackSomethingArePassedOverAtOnce) {
  CoreDriver d;
  ReplaceBAndC(d);
  for (const char* worker : {"e", "f"}) d.Heard(worker);
  for (const int rank : {1, 2}) {
    d.Fail("job-a", rank, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  }
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  for (const char* worker : {"e", "f"}) EXPECT_THAT(d.Heard(worker), HasSubstr("ReleaseJob"));
}

// Killed while the newcomer's word is on its way.
TEST(BlameTest, TheOnlyWitnessIsMissed) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Exit("a", 9);
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  // Nor is it the second failing without a witness, when the first had one.
  CoreDriver e;
  ReplaceBAndC(e);
  e.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  e.Exit("a", 9);
  e.Fail("job-a", 2, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(e.StateOf("job-a"), "RECOVERING");
}

// Rank 1 is out of memory, and both abort. Returns how long the next try is waited for, or the
// job's end.
absl::Duration RunOutOfMemory(CoreDriver& d) {
  const int64_t generation = d.Job("job-a").status().generation();
  d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  const absl::Time failed = d.now();
  while (d.StateOf("job-a") == "RECOVERING" && d.Job("job-a").status().generation() == generation &&
         d.now() - failed < absl::Minutes(6)) {
    d.Advance(absl::Milliseconds(250));
  }
  return d.now() - failed;
}

// The driver may hold a dead process's memory for a while; nobody else is there. What has not
// passed by then will not.
TEST(BlameTest, WhatMayPassIsTriedAgainForMinutes) {
  CoreDriver d;
  ReplaceBByC(d);
  const absl::Time first = d.now();
  absl::Duration longest;
  for (int i = 0; i < 20 && d.StateOf("job-a") == "RECOVERING"; ++i) {
    longest = std::max(longest, RunOutOfMemory(d));
  }
  EXPECT_GT(longest, absl::Minutes(4)) << "the pauses grow";
  EXPECT_LT(longest, absl::Minutes(6));
  EXPECT_LT(d.now() - first, absl::Minutes(40));
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::OUT_OF_MEMORY);
}

// Though it may be the job as well by now.
TEST(BlameTest, WhoeverComesMeanwhileIsTriedInItsPlace) {
  CoreDriver d;
  ReplaceBByC(d);
  while (d.StateOf("job-a") == "RECOVERING" && RunOutOfMemory(d) < absl::Minutes(5)) {
  }
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Hello("e", 'e');
  EXPECT_LT(RunOutOfMemory(d), absl::Minutes(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
  d.Form("job-a", CoreDriver::Held(4));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
}

// A ring of one: whoever takes its place is alone.
TEST(BlameTest, WithoutAWitnessOneBadSpareDoesNotEndTheJobButTwoDo) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Create("job-a", 1);
  d.Form("job-a");
  d.Step("job-a", 4);
  d.Hello("c", 'c');
  d.Exit("a", 9);
  ASSERT_EQ(d.WorkerAt("job-a", 0), "c");
  d.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Hello("e", 'e');
  d.Advance(absl::Seconds(1));
  ASSERT_EQ(d.WorkerAt("job-a", 0), "e");
  d.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
}

// Killed between its vote and the others' word. The next ring shows whether it was its doing.
TEST(BlameTest, WhatIsToldOfTheDeadDoesNotEndTheJob) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  d.Exit("c", 9);
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  ASSERT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
}

// Its files are not as they were, say all of those that have run the job.
TEST(BlameTest, WhereAllHaveRunTheJobItIsTheJob) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  for (const int rank : {0, 1}) d.Fail("job-a", rank, v1::Fault::COMMUNICATION_ERROR);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  ASSERT_EQ(d.Job("job-a").status().generation(), 2);
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
}

TEST(BlameTest, ARestartedCoordinatorKnowsWhoRanTheJob) {
  CoreDriver d;
  d.RunningPair();
  d.Step("job-a", 4);
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(4));
  d.Hello("c", 'c');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// The veteran tells its fault again to the new coordinator, and the newcomer is gone.
TEST(BlameTest, ARestartedCoordinatorKnowsWhoWasBlamed) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Form("job-a", CoreDriver::Held(4));
  for (const int rank : {0, 1}) {
    d.Fail("job-a", rank, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1 - rank});
  }
  d.Restart(v1::PHASE_ABORTING, CoreDriver::Held(4), {0});
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// Started, but the first step not done: what a vote in it says speaks against the newcomer still.
TEST(BlameTest, ARestartMakesNobodyProven) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Form("job-a", CoreDriver::Held(4));
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(4));
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true, {1});
  EXPECT_EQ(d.StateOf("job-a"), "RECOVERING");
}

// Told after the peer has noticed.
TEST(BlameTest, AnEchoIsABlameAllTheSame) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  d.Fail("job-a", 0, v1::Fault::COMMUNICATION_ERROR);
  d.Fail("job-a", 1, v1::Fault::EXCEPTION);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Advance(absl::Seconds(1));
  EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
}

TEST(BlameTest, AWorkerThatHasRunTheJobSpeaksForTheJob) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Fail("job-a", 0, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  // So does anybody in a ring that has done a step.
  CoreDriver e;
  ReplaceBByC(e);
  e.Form("job-a", CoreDriver::Held(4));
  e.Step("job-a", 5);
  e.Fail("job-a", 1, v1::Fault::FORM_ERROR, /*deterministic=*/true);
  EXPECT_EQ(e.StateOf("job-a"), "FAILED");
}

}  // namespace
}  // namespace ringmaster::coordinator
