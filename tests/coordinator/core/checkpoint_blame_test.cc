// A checkpoint that cannot be read: whose fault it is, and what becomes of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using testing::HasSubstr;

const v1::HeldState kDirty = CoreDriver::Held(5, 7, /*clean=*/false);

// Checkpoints of steps 3 and 5; then both workers are killed, and their successors restore.
void LoseAllMemory(
    CoreDriver& d, const CoreDriver::Edit& edit = [](auto&) {}) {
  d.RunningPair(edit);
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

// How often rank 1 fails to read the newer one until the older one is planned.
int AttemptsAtTheNewer(CoreDriver& d) {
  int attempts = 0;
  while (PlannedStep(d) == 5) {
    if (++attempts > 20 || d.StateOf("job-a") == "FAILED") break;
    d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR);
    for (const int rank : {0, 1}) d.Aborted("job-a", rank);
    d.AwaitRetry();
    for (const int rank : {0, 1}) d.Join("job-a", rank);
  }
  return attempts;
}

TEST(CheckpointBlameTest, ReadErrorsDeleteNothing) {
  CoreDriver d;
  LoseAllMemory(d);
  const int attempts = AttemptsAtTheNewer(d);
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

// The deaths cost the first, each attempt at the newer one another.
TEST(CheckpointBlameTest, TheBudgetIsEnoughForTheOlderOne) {
  for (const int budget : {2, 3, 9, 100}) {
    SCOPED_TRACE(budget);
    CoreDriver d;
    LoseAllMemory(d, [&](auto& spec) { spec.mutable_recovery()->set_episodes_max(budget); });
    EXPECT_EQ(AttemptsAtTheNewer(d), std::min(budget - 1, 8));
    EXPECT_EQ(PlannedStep(d), 3);
    for (const int rank : {0, 1}) d.Ready("job-a", rank, CoreDriver::Held(3));
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  }
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
  d.Aborted("job-a", 0, kDirty);
  ASSERT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Join("job-a", 0, kDirty);
  d.Join("job-a", 1);
  ASSERT_EQ(PlannedStep(d), 5);
  d.Fail("job-a", 1, v1::Fault::CHECKPOINT_ERROR, /*deterministic=*/true);
  d.Aborted("job-a", 0, kDirty);
  d.Aborted("job-a", 1);
  d.AwaitRetry();
  EXPECT_EQ(d.WorkerAt("job-a", 1), "c");
  d.Join("job-a", 0, kDirty);
  d.Join("job-a", 1);
  EXPECT_EQ(PlannedStep(d), 3);
}

// A ring whose rank 0 has run the job, its state cut off in the middle of an update; the newcomer b
// is rank 1. Returns with all joined.
void LoseTheCleanState(CoreDriver& d, const std::vector<int>& committed, int budget = 100) {
  d.RunningPair([&](auto& spec) { spec.mutable_recovery()->set_episodes_max(budget); });
  for (const int step : committed) {
    d.Step("job-a", step);
    d.Checkpoint("job-a", step);
  }
  d.Exit("b", 9);
  d.Aborted("job-a", 0, kDirty);
  d.Hello("b", 'B');
  d.Join("job-a", 0, kDirty);
  d.Join("job-a", 1);
}

// Those ranks cannot read what was planned; then the next generation has joined.
void FailToRead(CoreDriver& d, const std::vector<int>& ranks) {
  const int64_t generation = d.Job("job-a").status().generation();
  for (const int rank : ranks) d.Fail("job-a", rank, v1::Fault::CHECKPOINT_ERROR);
  ASSERT_EQ(d.StateOf("job-a"), "RECOVERING");
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, kDirty);
  for (int i = 0; i < 2000 && d.Job("job-a").status().generation() == generation; ++i) {
    d.Advance(absl::Milliseconds(250));
  }
  ASSERT_GT(d.Job("job-a").status().generation(), generation);
  d.Join("job-a", 0, kDirty);
  d.Join("job-a", 1);
}

// It cannot be read by anybody, but the newcomer is heard first each time, or alone.
TEST(CheckpointBlameTest, WithAWitnessTheOlderOneIsTriedInTime) {
  for (const std::vector<int>& tell : {std::vector<int>{1, 0}, {1}}) {
    for (const int budget : {3, 9, 100}) {
      SCOPED_TRACE(testing::Message() << budget << ", " << tell.size() << " tell it");
      CoreDriver d;
      LoseTheCleanState(d, {3, 5}, budget);
      int attempts = 0;
      for (; attempts < 8 && PlannedStep(d) == 5; ++attempts) FailToRead(d, tell);
      EXPECT_EQ(PlannedStep(d), 3);
      EXPECT_EQ(attempts, std::min(8, budget - 1)) << "each counts once, though two tell it";
    }
  }
}

// What one newcomer alone cannot read others may, and one comes in time.
TEST(CheckpointBlameTest, ANewcomerDoesNotTakeTheLastOne) {
  for (const std::vector<int>& committed : {std::vector<int>{3}, {3, 5}}) {
    CoreDriver d;
    LoseTheCleanState(d, committed);
    for (int i = 0; i < 8 && PlannedStep(d) == 5; ++i) FailToRead(d, {1});
    for (int i = 0; i < 9; ++i) {
      ASSERT_EQ(PlannedStep(d), 3) << "after " << i << " attempts";
      if (i == 8) d.Hello("e", 'e');
      FailToRead(d, {1});
    }
    ASSERT_EQ(d.WorkerAt("job-a", 1), "e");
    for (const int rank : {0, 1}) d.Ready("job-a", rank, CoreDriver::Held(3));
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  }
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

TEST(CheckpointBlameTest, UsersSeeWhatWasSetAside) {
  CoreDriver d;
  GoOnFromTheOlder(d);
  v1::ListCheckpointsRequest request;
  request.set_parent(d.Job("job-a").name());
  const auto list = d.Call<v1::ListCheckpointsResponse>(request);
  ASSERT_EQ(list->checkpoints_size(), 2);
  EXPECT_TRUE(list->checkpoints(0).set_aside());
  EXPECT_FALSE(list->checkpoints(1).set_aside());
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
