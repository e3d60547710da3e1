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
      {S::RECOVERING, S::FAILED},   {S::STARTING, S::PAUSING},      {S::RUNNING, S::PAUSING},
      {S::RECOVERING, S::PAUSING},  {S::PAUSING, S::PAUSED},        {S::PAUSED, S::QUEUED},
      {S::QUEUED, S::PAUSED},       {S::RECOVERING, S::PAUSED},     {S::PAUSING, S::QUEUED},
      {S::PAUSING, S::SUCCEEDED},   {S::PAUSING, S::RECOVERING},    {S::PAUSING, S::CANCELLING},
      {S::PAUSING, S::FAILED},      {S::PAUSED, S::CANCELLING}};
  for (int from = 1; from <= S::State_MAX; ++from) {
    for (int to = 1; to <= S::State_MAX; ++to) {
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

v1::Hardware Gpu() {
  v1::Hardware gpu = CoreDriver::Cpu();
  gpu.set_device(v1::CUDA);
  gpu.add_transports("nccl/2.28.9");
  return gpu;
}

// A GPU sums on its own.
TEST(PlacerTest, TheCpuOfAGpuWorkerDoesNotMatter) {
  CoreDriver d;
  v1::Hardware gpu = Gpu();
  d.Hello("a", 'a', gpu);
  gpu.set_cpu_capability("avx512 of another vendor");
  d.Hello("b", 'b', gpu);
  d.Create("pair", 2);
  EXPECT_EQ(d.StateOf("pair"), "STARTING");
}

// Another model's multiprocessors are more or fewer, and so are the parts that it sums.
TEST(PlacerTest, GpusOfOneRingAreOfOneModel) {
  CoreDriver d;
  v1::Hardware gpu = Gpu();
  gpu.set_device_name("NVIDIA H100");
  d.Hello("a", 'a', gpu);
  gpu.set_device_name("NVIDIA A100");
  d.Hello("b", 'b', gpu);
  d.Create("pair", 2);
  EXPECT_EQ(d.StateOf("pair"), "QUEUED");
  d.Hello("c", 'c', gpu);
  ASSERT_EQ(d.StateOf("pair"), "STARTING");
  EXPECT_EQ(d.WorkerAt("pair", 0), "b");
  d.Exit("c", 9);
  d.Aborted("pair", 0);
  EXPECT_THAT(
      d.Job("pair").status().pending_reason().message(),
      HasSubstr("1 of another GPU model, transport or build (1.0.0 (c0ffee), NVIDIA H100)"));
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
  EXPECT_THAT(reason.message(),
              HasSubstr("1 of another GPU model, transport or build (2.0.0 (facade))"));
  const v1::PendingReason& queued = d.Job("queued").status().pending_reason();
  EXPECT_EQ(queued.code(), "WORKERS_UNSUITABLE");
  EXPECT_THAT(queued.message(),
              HasSubstr("1 with another device, GPU model, CPU code path, transport or "
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

}  // namespace
}  // namespace ringmaster::coordinator
