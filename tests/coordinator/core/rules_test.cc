#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "coordinator/core/lifecycle.h"
#include "coordinator/core/restore_plan.h"
#include "coordinator/core/ring_order.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using S = v1::TrainingJobStatus;
using Episode = v1::RecoveryEpisode;

TEST(LifecycleTest, AllowsExactlyTheDrawnTransitions) {
  const std::vector<std::pair<S::State, S::State>> legal = {
      {S::QUEUED, S::STARTING},     {S::STARTING, S::RUNNING},      {S::RUNNING, S::SUCCEEDED},
      {S::STARTING, S::RECOVERING}, {S::RUNNING, S::RECOVERING},    {S::RECOVERING, S::RUNNING},
      {S::RECOVERING, S::QUEUED},   {S::QUEUED, S::CANCELLING},     {S::STARTING, S::CANCELLING},
      {S::RUNNING, S::CANCELLING},  {S::RECOVERING, S::CANCELLING}, {S::CANCELLING, S::CANCELLED},
      {S::QUEUED, S::FAILED},       {S::STARTING, S::FAILED},       {S::RUNNING, S::FAILED},
      {S::RECOVERING, S::FAILED}};
  for (int from = 1; from <= 8; ++from) {
    for (int to = 1; to <= 8; ++to) {
      const std::pair edge(static_cast<S::State>(from), static_cast<S::State>(to));
      const bool drawn = std::find(legal.begin(), legal.end(), edge) != legal.end();
      EXPECT_EQ(IsLegal(edge.first, edge.second), drawn) << from << " -> " << to;
    }
  }
}

v1::Checkpoint CheckpointAt(int64_t step) {
  v1::Checkpoint checkpoint;
  checkpoint.set_step(step);
  return checkpoint;
}

struct PlanRow {
  const char* name;
  // Step and digest by rank; step -1: nothing held, negative digest: not clean.
  std::vector<std::pair<int64_t, int64_t>> held;
  std::vector<int64_t> checkpoints;
  Episode::Restore source;
  int64_t step;
  int donor = 0;
  std::vector<int> receivers = {};
};

TEST(RestorePlanTest, TheHighestCleanStepWins) {
  const std::vector<PlanRow> rows = {
      {"nothing", {{-1, 0}, {-1, 0}}, {}, Episode::FRESH, 0},
      {"all_own", {{5, 7}, {5, 7}}, {3}, Episode::OWN, 5},
      {"one_behind", {{5, 7}, {6, 8}}, {}, Episode::PEER, 6, 1, {0}},
      {"one_empty", {{-1, 0}, {6, 8}, {6, 8}}, {}, Episode::PEER, 6, 1, {0}},
      {"torn_is_no_donor", {{6, -1}, {5, 7}}, {}, Episode::PEER, 5, 1, {0}},
      {"all_torn", {{6, -1}, {6, -1}}, {2, 4}, Episode::CHECKPOINT, 4},
      {"all_torn_no_checkpoint", {{6, -1}, {6, -1}}, {}, Episode::FRESH, 0},
      {"disk_is_newer", {{3, 7}, {-1, 0}}, {4}, Episode::CHECKPOINT, 4},
      {"memory_is_as_new", {{4, 7}, {-1, 0}}, {4}, Episode::PEER, 4, 0, {1}},
      {"differing", {{5, 7}, {5, 8}}, {4}, Episode::CHECKPOINT, 4},
      {"differing_no_checkpoint", {{5, 7}, {5, 8}, {5, 8}}, {}, Episode::PEER, 5, 1, {0}},
  };
  for (const PlanRow& row : rows) {
    SCOPED_TRACE(row.name);
    RestoreSources sources;
    for (const auto& [step, digest] : row.held) {
      sources.held.push_back(step < 0
                                 ? v1::HeldState()
                                 : CoreDriver::Held(step, digest < 0 ? 0 : digest, digest >= 0));
    }
    for (const int64_t step : row.checkpoints) sources.checkpoints.push_back(CheckpointAt(step));
    const v1::RestorePlan plan = PlanRestore(sources);
    EXPECT_EQ(plan.source(), row.source);
    EXPECT_EQ(plan.step(), row.step);
    EXPECT_EQ(plan.donor_rank(), row.donor);
    EXPECT_EQ(std::vector<int>(plan.receiver_ranks().begin(), plan.receiver_ranks().end()),
              row.receivers);
  }
}

TEST(RestorePlanTest, StartsFromWhatTheJobNames) {
  const v1::Checkpoint given = CheckpointAt(9);
  RestoreSources sources{.held = {v1::HeldState()}};
  sources.resume = &given;
  EXPECT_EQ(PlanRestore(sources).source(), Episode::CHECKPOINT);
  EXPECT_EQ(PlanRestore(sources).step(), 9);
  sources.resume = nullptr;
  sources.init = &given;
  EXPECT_EQ(PlanRestore(sources).source(), Episode::FRESH);
  EXPECT_EQ(PlanRestore(sources).step(), 0);
  EXPECT_TRUE(PlanRestore(sources).has_checkpoint());
}

// The cheapest order there is, by trying all.
int BestCost(std::vector<Place> places, int ring_size) {
  const auto less = [](const Place& a, const Place& b) { return a.worker < b.worker; };
  std::sort(places.begin(), places.end(), less);
  int best = RingCost(places, ring_size);
  while (std::next_permutation(places.begin(), places.end(), less)) {
    best = std::min(best, RingCost(places, ring_size));
  }
  return best;
}

TEST(RingOrderTest, OneRingCostsNoMoreThanTheBestOrder) {
  std::mt19937 random(20240);
  for (int round = 0; round < 200; ++round) {
    const int count = 1 + static_cast<int>(random() % 7);
    std::vector<Place> places;
    for (int i = 0; i < count; ++i) {
      const std::string host = absl::StrCat(random() % 3);
      places.push_back({absl::StrCat("w", i), "", host, absl::StrCat(host, random() % 2)});
    }
    const std::vector<Place> order = OrderRings(places, count);
    EXPECT_EQ(RingCost(order, count), BestCost(places, count)) << "round " << round;
    std::shuffle(places.begin(), places.end(), random);
    const std::vector<Place> again = OrderRings(places, count);
    for (int i = 0; i < count; ++i) EXPECT_EQ(order[i].worker, again[i].worker);
  }
}

TEST(RingOrderTest, SurvivorsKeepTheirRanks) {
  std::vector<Place> places = {
      {"w0", "", "h", "g", 2}, {"w1", "", "h", "g", 0}, {"w9", "", "h", "g"}};
  const std::vector<Place> order = OrderRings(places, 3);
  EXPECT_EQ(order[0].worker, "w1");
  EXPECT_EQ(order[1].worker, "w9");
  EXPECT_EQ(order[2].worker, "w0");
}

TEST(RingOrderTest, ReplicasGetAHostEach) {
  std::vector<Place> places;
  for (int i = 0; i < 6; ++i) {
    places.push_back({absl::StrCat("w", i), "", i % 2 == 0 ? "even" : "odd", ""});
  }
  EXPECT_EQ(RingCost(OrderRings(places, 3), 3), 0);
}

TEST(RingOrderTest, ChoosesWhatFitsAndWhatIsNear) {
  const std::vector<Place> idle = {{"a0", "", "big", ""},
                                   {"a1", "", "big", ""},
                                   {"a2", "", "big", ""},
                                   {"b0", "", "fit", ""},
                                   {"b1", "", "fit", ""}};
  for (const Place& place : ChoosePlaces(idle, {}, 2, 2)) EXPECT_EQ(place.host, "fit");
  EXPECT_EQ(ChoosePlaces(idle, {{"a9", "", "big", ""}}, 1, 2)[0].worker, "a0");
}

TEST(RingOrderTest, ChoosesAmongEqualsTheLongestThereAndOrdersThemByName) {
  const absl::Time now = absl::UnixEpoch();
  const std::vector<Place> idle = {{"a", "", "h", "g", -1, now + absl::Seconds(3)},
                                   {"b", "", "h", "g", -1, now + absl::Seconds(2)},
                                   {"c", "", "h", "g", -1, now + absl::Seconds(1)},
                                   {"d", "", "far", "g", -1, now}};
  EXPECT_EQ(ChoosePlaces(idle, {{"m", "", "h", "g"}}, 1, 2)[0].worker, "c") << "near goes first";
  const std::vector<Place> order = OrderRings(ChoosePlaces(idle, {}, 2, 2), 2);
  EXPECT_EQ(order[0].worker, "b");
  EXPECT_EQ(order[1].worker, "c");
}

TEST(PlacerTest, AnOlderJobIsNotStarvedAndAnImpossibleOneStopsNobody) {
  CoreDriver d;
  d.Hello("a", 'a');
  d.Hello("b", 'b');
  v1::CreateTrainingJobRequest cuda = d.CreateRequest("cuda", 1);
  cuda.mutable_training_job()->mutable_spec()->mutable_resources()->set_device(v1::CUDA);
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cuda).ok());
  EXPECT_EQ(d.Job("cuda").status().pending_reason().code(), "WORKERS_UNSUITABLE");
  d.Create("first", 1);
  EXPECT_EQ(d.StateOf("first"), "STARTING");
  d.Create("pair", 2);
  EXPECT_EQ(d.Job("pair").status().pending_reason().code(), "WORKERS_BUSY");
  EXPECT_EQ(d.Job("pair").status().pending_reason().queue_position(), 2);
  // One worker is idle, but kept for the pair.
  d.Create("late", 1);
  EXPECT_EQ(d.StateOf("late"), "QUEUED");
  EXPECT_EQ(d.Job("late").status().pending_reason().queue_position(), 3);
}

TEST(PlacerTest, RanksAreAlike) {
  CoreDriver d;
  v1::Hardware other = CoreDriver::Cpu();
  other.set_cpu_capability("avx512");
  d.Hello("a", 'a');
  d.Hello("b", 'b', other);
  d.Create("pair", 2);
  EXPECT_EQ(d.Job("pair").status().pending_reason().code(), "WORKERS_UNSUITABLE");
  d.Hello("c", 'c', other);
  EXPECT_EQ(d.StateOf("pair"), "STARTING");
  EXPECT_EQ(d.WorkerAt("pair", 0), "b");
}

// A GPU sums on its own.
TEST(PlacerTest, TheCpuOfAGpuWorkerDoesNotMatter) {
  CoreDriver d;
  v1::Hardware gpu = CoreDriver::Cpu();
  gpu.set_device(v1::CUDA);
  gpu.add_transports("nccl/2.28.9");
  d.Hello("a", 'a', gpu);
  gpu.set_cpu_capability("avx512 of another vendor");
  d.Hello("b", 'b', gpu);
  d.Create("pair", 2);
  EXPECT_EQ(d.StateOf("pair"), "STARTING");
}

TEST(PlacerTest, RanksOfOneRingRunOneBuild) {
  CoreDriver d;
  d.RunningPair();
  d.Hello("c", 'c');
  d.Create("queued", 2);
  // Workers are updated one by one; c still is as it was.
  d.set_version("2.0.0 (facade)");
  d.Exit("b", 15);
  d.Hello("b", 'B');
  d.Exit("c", 15);
  d.Aborted("job-a", 0, CoreDriver::Held(3));
  const v1::PendingReason& reason = d.Job("job-a").status().pending_reason();
  EXPECT_EQ(reason.code(), "WAITING_FOR_REPLACEMENT");
  EXPECT_THAT(reason.message(), HasSubstr("1 of another transport or build (2.0.0 (facade))"));
  const v1::PendingReason& queued = d.Job("queued").status().pending_reason();
  EXPECT_EQ(queued.code(), "WORKERS_UNSUITABLE");
  EXPECT_THAT(queued.message(), HasSubstr("1 with another device, CPU code path, transport or "
                                          "build than those"));
  // No member is left, and one idle worker is not as the other.
  d.Exit("a", 15);
  d.set_version("1.0.0 (c0ffee)");
  d.Hello("c", 'C');
  EXPECT_EQ(d.Job("job-a").status().generation(), 1);
  d.set_version("2.0.0 (facade)");
  d.Hello("a", 'A');
  ASSERT_EQ(d.Job("job-a").status().generation(), 2);
  EXPECT_EQ(d.WorkerAt("job-a", 0), "a");
  EXPECT_EQ(d.WorkerAt("job-a", 1), "b");
}

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
