// Checkpoints: committed, kept, deleted, adopted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

TEST(CheckpointTest, RetentionDeletesWhatIsPastIt) {
  CoreDriver d;
  d.RunningPair();
  d.Heard("a");
  std::vector<std::string> first;
  for (int64_t step = 1; step <= 4; ++step) {
    d.Checkpoint("job-a", step);
    if (step == 1) first = {d.ShardPath("job-a", 1, 0), d.ShardPath("job-a", 1, 1)};
  }
  EXPECT_EQ(d.Heard("a"),
            "CheckpointCommitted CheckpointCommitted CheckpointCommitted CheckpointCommitted "
            "DeleteFiles");
  const auto& paths = d.Last("a", v1::Directive::kDeleteFiles).delete_files().paths();
  EXPECT_EQ(std::vector<std::string>(paths.begin(), paths.end()), first);
  v1::ListCheckpointsRequest request;
  request.set_parent(d.Job("job-a").name());
  const auto list = d.Call<v1::ListCheckpointsResponse>(request);
  ASSERT_EQ(list->checkpoints_size(), 3);
  EXPECT_EQ(list->checkpoints(0).step(), 4);
  EXPECT_EQ(list->checkpoints(0).bytes(), 200);
}

TEST(CheckpointTest, ADeletionIsToldUntilAWorkerSaysThatItIsDone) {
  CoreDriver d;
  d.RunningPair();
  for (int64_t step = 1; step <= 5; ++step) d.Checkpoint("job-a", step);
  const std::vector<std::string> gone = {d.ShardPath("job-a", 1, 0), d.ShardPath("job-a", 1, 1)};
  const std::vector<std::string> left = {d.ShardPath("job-a", 2, 0), d.ShardPath("job-a", 2, 1)};
  v1::WorkerReport report;
  *report.mutable_files_deleted()->mutable_ring() = d.Ring("job-a", 0);
  *report.mutable_files_deleted()->mutable_paths() = {gone.begin(), gone.end()};
  d.Report("a", report);
  // It was told of the other two as well, and dies.
  d.Hello("c", 'c');
  d.Exit("a", 9);
  d.Aborted("job-a", 1, CoreDriver::Held(5));
  d.Form("job-a", CoreDriver::Held(5));
  const std::string rank_0 = d.WorkerAt("job-a", 0);
  EXPECT_THAT(d.Heard(rank_0), HasSubstr("DeleteFiles"));
  const auto& told = d.Last(rank_0, v1::Directive::kDeleteFiles).delete_files().paths();
  EXPECT_EQ(std::vector<std::string>(told.begin(), told.end()), left);
  // The answer counts whatever has become of the ring.
  d.Fail("job-a", 0, v1::Fault::EXCEPTION);
  *report.mutable_files_deleted()->mutable_paths() = {left.begin(), left.end()};
  d.Report(rank_0, report);
  d.Aborted("job-a", 0, CoreDriver::Held(5));
  d.Aborted("job-a", 1, CoreDriver::Held(5));
  d.Advance(absl::Seconds(1));
  d.Form("job-a", CoreDriver::Held(5));
  EXPECT_EQ(d.Heard(d.WorkerAt("job-a", 0)).find("DeleteFiles"), std::string::npos);
}

// Rank 0 may die before it has written manifest.json.
TEST(CheckpointTest, RankZeroOfTheNextGenerationIsToldOfTheCheckpointsToo) {
  CoreDriver d;
  d.RunningPair();
  for (const int64_t step : {3, 5}) d.Checkpoint("job-a", step);
  d.Hello("c", 'c');
  d.Exit(d.WorkerAt("job-a", 0), 9);
  d.Aborted("job-a", 1, CoreDriver::Held(5));
  d.Form("job-a", CoreDriver::Held(5));
  const std::string rank_0 = d.WorkerAt("job-a", 0);
  EXPECT_THAT(d.Heard(rank_0), HasSubstr("StartSteps CheckpointCommitted CheckpointCommitted"));
  const v1::CheckpointCommitted& last =
      d.Last(rank_0, v1::Directive::kCheckpointCommitted).checkpoint_committed();
  EXPECT_EQ(last.checkpoint().step(), 5);
  EXPECT_EQ(last.checkpoint().generation(), 1);
  EXPECT_EQ(last.ring().generation(), 2);
  EXPECT_EQ(d.Heard(d.WorkerAt("job-a", 1)).find("CheckpointCommitted"), std::string::npos);
}

TEST(CheckpointTest, AtTheEndWithoutRankZeroAnotherMemberIsTold) {
  CoreDriver d;
  d.RunningPair();
  const std::string other = d.WorkerAt("job-a", 1);
  d.Checkpoint("job-a", 10);
  d.Heard(other);
  d.Exit(d.WorkerAt("job-a", 0), 9);
  EXPECT_EQ(d.StateOf("job-a"), "SUCCEEDED");
  EXPECT_EQ(d.Heard(other), "CheckpointCommitted ReleaseJob");
}

// Whether it was told already or not: nobody is asked after the job's end.
TEST(CheckpointTest, AtTheEndWithoutRankZeroAnotherMemberDeletes) {
  CoreDriver d;
  d.RunningPair();
  const std::string other = d.WorkerAt("job-a", 1);
  for (int64_t step = 7; step <= 10; ++step) d.Checkpoint("job-a", step);
  const std::string gone = d.ShardPath("job-a", 7, 0);
  const std::string in_vain = d.ShardPath("job-a", 6, 1);
  d.Shard("job-a", 1, 6);
  d.Heard(other);
  d.Exit(d.WorkerAt("job-a", 0), 9);
  ASSERT_EQ(d.StateOf("job-a"), "SUCCEEDED");
  EXPECT_THAT(d.Heard(other), testing::EndsWith("DeleteFiles ReleaseJob"));
  EXPECT_THAT(d.Last(other, v1::Directive::kDeleteFiles).delete_files().paths(),
              testing::IsSupersetOf({gone, in_vain}));
}

// Rank 0 was told and killed; another worker took its place, and no ring began to step again.
TEST(CheckpointTest, AtTheEndTheSuccessorOfRankZeroDeletes) {
  CoreDriver d;
  d.RunningPair();
  const std::string first = d.WorkerAt("job-a", 0);
  for (int64_t step = 1; step <= 4; ++step) d.Checkpoint("job-a", step);
  const std::string gone = d.ShardPath("job-a", 1, 0);
  d.Hello("c", 'c');
  d.Exit(first, 9);
  d.Aborted("job-a", 1, CoreDriver::Held(4));
  ASSERT_EQ(d.WorkerAt("job-a", 0), "c");
  d.Heard("c");
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(d.Job("job-a").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
  for (const int rank : {0, 1}) d.Aborted("job-a", rank, CoreDriver::Held(4));
  ASSERT_EQ(d.StateOf("job-a"), "CANCELLED");
  EXPECT_THAT(d.Heard("c"), testing::EndsWith("DeleteFiles ReleaseJob"));
  EXPECT_THAT(d.Last("c", v1::Directive::kDeleteFiles).delete_files().paths(),
              testing::Contains(gone));
}

TEST(CheckpointTest, WhatIsToBeDeletedIsNotImported) {
  CoreDriver d;
  d.RunningPair();
  for (int64_t step = 1; step <= 4; ++step) d.Checkpoint("job-a", step);
  const std::string shard = d.ShardPath("job-a", 1, 1);
  ManifestFile file;
  file.checkpoint.set_step(1);
  file.checkpoint.set_directory(shard.substr(0, shard.rfind('/')));
  file.checkpoint.add_shards()->set_path(shard);
  v1::ImportCheckpointRequest request;
  request.set_directory(file.checkpoint.directory());
  const auto refused = d.Call<v1::Checkpoint>(request, file);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Details(refused.status()).reason, "CHECKPOINT_BEING_DELETED");
  // A copy of it is another matter.
  file.checkpoint.set_directory("/copy");
  file.checkpoint.mutable_shards(0)->set_path("/copy/shard");
  EXPECT_TRUE(d.Call<v1::Checkpoint>(request, file).ok());
}

TEST(CheckpointTest, AFailedShardLeavesNoCheckpoint) {
  CoreDriver d;
  d.RunningPair();
  d.Shard("job-a", 0, 3);
  d.Shard("job-a", 1, 3, "no space left on device");
  EXPECT_EQ(d.Job("job-a").status().last_checkpoint(), "");
  EXPECT_NE(d.Job("job-a").status().state_reason().find("no space left"), std::string::npos);
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.checkpoint_failures["write_error"], 1);
  EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
  d.Checkpoint("job-a", 5);
  EXPECT_EQ(d.Job("job-a").status().state_reason(), "");
  d.Heard("a");
  EXPECT_EQ(d.Last("a", v1::Directive::kDeleteFiles).delete_files().paths(0),
            d.ShardPath("job-a", 3, 0));
}

// Only rank 0 hears that a checkpoint is committed: the others tell of all that they wrote, and of
// what they could not, whenever they attach again.
TEST(CheckpointTest, AFailureThatIsToldAgainIsNoNewOne) {
  CoreDriver d;
  d.RunningPair();
  d.Shard("job-a", 0, 3);
  d.Shard("job-a", 1, 3, "no space left on device");
  d.Checkpoint("job-a", 5);
  d.Shard("job-a", 1, 3, "no space left on device");
  EXPECT_EQ(d.Job("job-a").status().state_reason(), "");
  EXPECT_EQ(d.Core().Snapshot(d.now()).counters.checkpoint_failures["write_error"], 1);
}

TEST(CheckpointTest, AShardThatCannotBelongToACheckpointFailsIt) {
  struct Row {
    const char* name;
    int64_t step;
    // Of rank 1's shard, below the job's directory.
    std::string path;
    bool deleted;
  };
  const std::vector<Row> rows = {
      {"step zero", 0, "/checkpoints/step-3/shard-1", true},
      {"a step past the end", 11, "/checkpoints/step-3/shard-1", true},
      {"outside the checkpoints folder", 3, "/logs/shard-1", false},
      {"a folder", 3, "/checkpoints/", false},
      {"outside by a detour", 3, "/checkpoints/../steps.jsonl", false},
      {"not beside the other shard", 3, "/checkpoints/step-4/shard-1", true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    CoreDriver d;
    d.RunningPair();
    d.Shard("job-a", 0, 3);
    v1::WorkerReport report;
    v1::ShardWritten* written = report.mutable_shard_written();
    *written->mutable_ring() = d.Ring("job-a", 1);
    written->set_step(row.step);
    written->mutable_shard()->set_path(d.Job("job-a").spec().directory() + row.path);
    d.Report(d.WorkerAt("job-a", 1), report);
    EXPECT_EQ(d.Job("job-a").status().last_checkpoint(), "");
    EXPECT_THAT(d.Job("job-a").status().state_reason(), HasSubstr("failed on rank 1"));
    EXPECT_EQ(d.Core().Snapshot(d.now()).counters.checkpoint_failures["invalid_shard"], 1);
    EXPECT_EQ(d.StateOf("job-a"), "RUNNING");
    // The next checkpoint is sound, and what is told to be deleted lies where a worker may delete.
    d.Checkpoint("job-a", 5);
    EXPECT_THAT(d.Job("job-a").status().last_checkpoint(), HasSubstr("step-5"));
    d.Heard("a");
    const auto& told = d.Last("a", v1::Directive::kDeleteFiles).delete_files().paths();
    const std::string& path = written->shard().path();
    EXPECT_EQ(std::count(told.begin(), told.end(), path), row.deleted ? 1 : 0);
  }
}

TEST(CheckpointTest, ImportedOnesAreListed) {
  CoreDriver d;
  v1::ImportCheckpointRequest request;
  request.set_directory("/old/step-7");
  ManifestFile file;
  file.checkpoint.set_step(7);
  file.checkpoint.set_directory("/old/step-7");
  file.checkpoint.add_shards()->set_path("/old/step-7/shard");
  const auto imported = d.Call<v1::Checkpoint>(request, file);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(d.Call<v1::Checkpoint>(request, file).status().code(),
            absl::StatusCode::kAlreadyExists);
  v1::ListCheckpointsRequest list;
  list.set_parent("projects/default/trainingJobs/imported");
  EXPECT_EQ(d.Call<v1::ListCheckpointsResponse>(list)->checkpoints_size(), 1);
  const auto unread = d.Call<v1::Checkpoint>(request, absl::NotFoundError("no manifest.json"));
  EXPECT_EQ(Details(unread.status()).fields[0].field, "directory");
}

}  // namespace
}  // namespace ringmaster::coordinator
