// Who is to blame for a failed attempt: the job, or a worker that took a place in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

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

// c took b's place and runs out of memory, while there is another worker, e, of `other`.
using Other = std::function<void(CoreDriver&)>;
void ExpectTheSameWorkerAgain(const Other& other) {
  CoreDriver d;
  ReplaceBByC(d);
  other(d);
  d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
  d.Aborted("job-a", 0, CoreDriver::Held(4));
  d.Aborted("job-a", 1);
  d.AwaitRetry();
  ASSERT_EQ(d.Job("job-a").status().generation(), 3);
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
}

TEST(BlameTest, WhoeverCouldNotTakeThePlaceIsNobodyElse) {
  v1::Hardware small = CoreDriver::Cpu();
  small.set_memory_bytes(1000);
  const std::vector<std::pair<const char*, Other>> rows = {
      {"another build",
       [](CoreDriver& d) {
         d.set_version("2.0.0 (facade)");
         d.Hello("e", 'e');
       }},
      {"too little memory", [&](CoreDriver& d) { d.Hello("e", 'e', small); }},
      {"busy",
       [](CoreDriver& d) {
         d.Hello("e", 'e');
         d.Create("job-b", 1);
         ASSERT_EQ(d.WorkerAt("job-b", 0), "e");
       }},
      {"its stream is broken",
       [](CoreDriver& d) {
         d.Hello("e", 'e');
         d.Break("e");
       }},
      {"it does not answer",
       [](CoreDriver& d) {
         d.Hello("e", 'e');
         v1::CancelTrainingJobRequest cancel;
         cancel.set_name(d.Create("job-b", 1));
         EXPECT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
         d.Advance(absl::Seconds(8));
         ASSERT_EQ(d.StateOf("job-b"), "CANCELLED");
       }},
  };
  for (const auto& [name, other] : rows) {
    SCOPED_TRACE(name);
    ExpectTheSameWorkerAgain(other);
  }
}

TEST(BlameTest, WhoeverFailedAtTheJobBeforeIsNobodyElse) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  for (int generation = 3; generation <= 4; ++generation) {
    d.Fail("job-a", 1, v1::Fault::OUT_OF_MEMORY_ERROR);
    d.Aborted("job-a", 0, CoreDriver::Held(4));
    if (generation == 4) d.Aborted("job-a", 1);
    d.AwaitRetry();
    ASSERT_EQ(d.Job("job-a").status().generation(), generation);
    EXPECT_EQ(d.WorkerAt("job-a", 1), "e");
  }
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

// Both members are killed, and their successors find that the data is gone: nobody can say that it
// is theirs alone.
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
  EXPECT_EQ(d.StateOf("job-a"), "FAILED");
  EXPECT_EQ(d.Job("job-a").status().failure_class(), v1::DATA);
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
    d.Fail("job-a", rank, v1::Fault::DATA_ERROR, /*deterministic=*/true);
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
  for (const char c : {'a', 'b', 'c'}) d.Hello(std::string(1, c), c);
  d.Create("job-a", 3);
  d.Form("job-a");
  d.Step("job-a", 4);
  d.Hello("e", 'e');
  d.Exit("c", 9);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 2), "e");
  for (const int rank : {0, 1}) {
    d.Fail("job-a", rank, v1::Fault::DATA_ERROR, /*deterministic=*/true);
    EXPECT_EQ(d.StateOf("job-a"), "RECOVERING") << "rank " << rank;
  }
  EXPECT_THAT(d.Job("job-a").status().episodes().rbegin()->lost_workers(),
              testing::ElementsAre("workers/c", "workers/e"));
}

// Killed between its vote and the others' word. The next ring shows whether it was its doing.
TEST(BlameTest, WhatIsToldOfTheDeadDoesNotEndTheJob) {
  CoreDriver d;
  ReplaceBByC(d);
  d.Hello("e", 'e');
  d.Exit("c", 9);
  d.Fail("job-a", 0, v1::Fault::DATA_ERROR, /*deterministic=*/true);
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

// Checkpoints of steps 3 and 5; then both workers are killed, and their successors restore.
void LoseAllMemory(CoreDriver& d) {
  d.RunningPair();
  for (const int step : {3, 5}) {
    d.Step("job-a", step);
    d.Checkpoint("job-a", step);
  }
  d.Exit("a", 9);
  d.Exit("b", 9);
  d.Hello("a", 'A');
  d.Hello("b", 'B');
  for (const int rank : {0, 1}) d.Join("job-a", rank);
}

// The newer one is damaged: the ring of generation 3 goes on from step 3.
void GoOnFromTheOlder(CoreDriver& d) {
  LoseAllMemory(d);
  d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR, /*deterministic=*/true);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank);
  d.AwaitRetry();
  for (const int rank : {0, 1}) d.Join("job-a", rank);
  for (const int rank : {0, 1}) d.Ready("job-a", rank, CoreDriver::Held(3));
  ASSERT_EQ(d.StateOf("job-a"), "RUNNING");
}

// The step that rank 0 is told to restore.
int64_t PlannedStep(CoreDriver& d) {
  const std::string first = d.WorkerAt("job-a", 0);
  d.Heard(first);
  return d.Last(first, v1::Directive::kConnectRing).connect_ring().restore().step();
}

TEST(CheckpointBlameTest, ReadErrorsDeleteNothing) {
  CoreDriver d;
  LoseAllMemory(d);
  int attempts = 0;
  while (PlannedStep(d) == 5) {
    ASSERT_LT(++attempts, 20);
    ASSERT_NE(d.StateOf("job-a"), "FAILED");
    d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR);
    for (const int rank : {0, 1}) d.Aborted("job-a", rank);
    d.AwaitRetry();
    for (const int rank : {0, 1}) d.Join("job-a", rank);
  }
  EXPECT_EQ(PlannedStep(d), 3);
  EXPECT_GE(attempts, 5) << "it may pass";
  for (const int rank : {0, 1}) d.Ready("job-a", rank, CoreDriver::Held(3));
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  EXPECT_THAT(d.Heard("a"), testing::Not(HasSubstr("DeleteFiles"))) << "nobody found them damaged";
  EXPECT_THAT(d.Job("job-a").status().last_checkpoint(), HasSubstr("step-3"));
  // A new life of the coordinator tries again, and may find that they can be read now.
  d.Start();
  d.Hello("a", 'E');
  d.Hello("b", 'F');
  d.AwaitRetry();
  for (const int rank : {0, 1}) d.Join("job-a", rank);
  ASSERT_EQ(PlannedStep(d), 5);
  for (const int rank : {0, 1}) d.Ready("job-a", rank, CoreDriver::Held(5));
  EXPECT_THAT(d.Job("job-a").status().last_checkpoint(), HasSubstr("step-5"));
}

// Whoever is idle could do no better with a damaged file, though a member is there that has run the
// job; its own state was cut off in the middle of an update.
TEST(CheckpointBlameTest, ADamagedOneIsNobodysLack) {
  CoreDriver d;
  d.RunningPair();
  for (const int step : {3, 5}) {
    d.Step("job-a", step);
    d.Checkpoint("job-a", step);
  }
  d.Hello("c", 'c');
  d.Hello("e", 'e');
  d.Exit("b", 9);
  d.Aborted("job-a", 0, CoreDriver::Held(5, 7, /*clean=*/false));
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Join("job-a", 0, CoreDriver::Held(5, 7, /*clean=*/false));
  d.Join("job-a", 1);
  ASSERT_EQ(PlannedStep(d), 5);
  d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, CoreDriver::Held(5, 7, /*clean=*/false));
  d.Aborted("job-a", 1);
  d.AwaitRetry();
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Join("job-a", 0, CoreDriver::Held(5, 7, /*clean=*/false));
  d.Join("job-a", 1);
  EXPECT_EQ(PlannedStep(d), 3);
}

// The ring does the damaged checkpoint's step again and goes on from memory: nobody has read it.
TEST(CheckpointBlameTest, OnlyWhoHasReadItTakesItBack) {
  CoreDriver d;
  GoOnFromTheOlder(d);
  d.Step("job-a", 6);
  for (const int rank : {0, 1}) d.Fail("job-a", rank, v1::Fault::COMMUNICATION_ERROR);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(6));
  d.AwaitRetry();
  d.Form("job-a", CoreDriver::Held(6));
  EXPECT_THAT(d.Job("job-a").status().last_checkpoint(), HasSubstr("step-3"));
}

// After a restart of the coordinator nobody remembers that it could not be read, but its mark does.
TEST(CheckpointBlameTest, MemoryGoesBeforeWhatWasSetAside) {
  CoreDriver d;
  GoOnFromTheOlder(d);
  d.Restart(v1::PHASE_RUNNING, CoreDriver::Held(4));
  for (const int rank : {0, 1}) d.Fail("job-a", rank, v1::Fault::COMMUNICATION_ERROR);
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  d.AwaitRetry();
  for (const int rank : {0, 1}) d.Join("job-a", rank, CoreDriver::Held(4));
  EXPECT_EQ(PlannedStep(d), 4);
}

TEST(CheckpointBlameTest, ANewerCheckpointReplacesWhatWasSetAside) {
  CoreDriver d;
  GoOnFromTheOlder(d);
  const std::string damaged =
      absl::StrCat(d.Job("job-a").spec().directory(), "/checkpoints/step-5/shard-0-g1");
  const std::string first = d.WorkerAt("job-a", 0);
  EXPECT_THAT(d.Heard(first), testing::Not(HasSubstr("DeleteFiles")));
  // The same step again, by another generation.
  d.Step("job-a", 5);
  d.Checkpoint("job-a", 5);
  EXPECT_THAT(d.Heard(first), HasSubstr("CheckpointCommitted"));
  const v1::DeleteFiles gone = d.Last(first, v1::Directive::kDeleteFiles).delete_files();
  EXPECT_THAT(gone.paths(), testing::Contains(damaged));
  EXPECT_THAT(gone.paths(), testing::Not(testing::Contains(d.ShardPath("job-a", 5, 0))));
}

}  // namespace
}  // namespace ringmaster::coordinator
