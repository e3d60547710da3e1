#include "worker/driver/session_loop.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/steady_now.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"
#include "tests/worker/driver/ring_scene.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int64_t kSteps = 10;

// Step -> the record that counts in steps.jsonl.
std::map<int64_t, v1::StepRecord> RecordsInFile(const RingScene& scene) {
  std::map<int64_t, v1::StepRecord> records;
  std::ifstream file(scene.directory() + "/steps.jsonl");
  for (std::string line; std::getline(file, line);) {
    v1::StepRecord record;
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(line, &record, options).ok()) << line;
    v1::StepRecord& kept = records[record.step()];
    if (record.generation() >= kept.generation()) {
      kept = record;
    }
  }
  return records;
}

int64_t LinesInFile(const RingScene& scene) {
  std::ifstream file(scene.directory() + "/steps.jsonl");
  return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
}

// Step -> training loss and validation loss (0 when there was none): what a recovery must not
// change.
using Curve = std::map<int64_t, std::pair<double, double>>;
Curve CurveOf(const RingScene& scene) {
  Curve curve;
  for (const auto& [step, record] : RecordsInFile(scene)) {
    curve[step] = {record.loss(), record.validation_loss()};
  }
  return curve;
}

// Of a run that nothing disturbs.
const Curve& Undisturbed() {
  static const Curve curve = [] {
    RingScene scene(kSteps);
    scene.StartPair();
    scene.PumpUntilFinished();
    EXPECT_TRUE(scene.faults().empty());
    EXPECT_EQ(CurveOf(scene).size(), kSteps);
    return CurveOf(scene);
  }();
  return curve;
}

TEST(SessionLoopTest, RunsAJobFromTheFirstStepToTheManifest) {
  RingScene scene(kSteps);
  scene.spec().mutable_checkpoint()->set_interval_steps(4);
  scene.StartWorker("a");
  scene.StartWorker("b");
  EXPECT_EQ(scene.FormRing(1, {"a", "b"}).source(), v1::RecoveryEpisode::FRESH);
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  EXPECT_EQ(scene.ready().at(0).state().digest(), scene.ready().at(1).state().digest());
  EXPECT_TRUE(scene.ready().at(0).state().clean());
  scene.StartSteps();
  scene.PumpUntilFinished();
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  EXPECT_EQ(scene.finished().at(0).state().step(), kSteps);
  EXPECT_EQ(scene.finished().at(0).checkpoint_error(), "");
  EXPECT_EQ(scene.finished().at(0).state().digest(), scene.finished().at(1).state().digest());

  const auto in_file = RecordsInFile(scene);
  ASSERT_EQ(in_file.size(), kSteps);
  for (const auto& [step, record] : in_file) {
    EXPECT_EQ(record.loss(), scene.records().at(step).loss());
    EXPECT_EQ(record.has_validation_loss(), step % 3 == 0 || step == kSteps) << step;
    EXPECT_EQ(record.tokens(), 288);
  }
  EXPECT_LT(in_file.at(kSteps).loss(), in_file.at(1).loss());

  // Shards of steps 4, 8 and 10 from both ranks.
  for (const int64_t step : {4, 8, 10}) {
    EXPECT_EQ(scene.CheckpointOf(step).shards_size(), 2) << step;
  }
  const v1::Checkpoint checkpoint = scene.CheckpointOf(kSteps);
  scene.Commit(checkpoint);
  const v1::Checkpoint old = scene.CheckpointOf(4);
  scene.Delete(old);
  scene.PumpUntil([&] { return !scene.deleted().empty(); }, "FilesDeleted");
  EXPECT_EQ(scene.deleted()[0].paths_size(), 2);
  EXPECT_FALSE(fs::exists(old.directory()));
  scene.Release();
  scene.Drain("a");
  EXPECT_EQ(scene.JoinWorker("a").code, kExitOk);
  // What was begun is done when the worker's threads are gone.
  scene.KillWorker("a");
  const auto manifest = ReadManifestFile(checkpoint.directory());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->spec.SerializeAsString(), scene.spec().SerializeAsString());
  EXPECT_TRUE(fs::is_empty(scene.directory() + "/ring"));
  scene.Drain("b");
  scene.JoinWorker("b");
  scene.KillWorker("b");
  EXPECT_EQ(LinesInFile(scene), kSteps) << "rank 1 says nothing that rank 0 has said";
}

TEST(SessionLoopTest, AFaultIsToldAndTheSameProcessesGoOnFromMemory) {
  RingScene scene(kSteps);
  scene.StartWorker("a");
  scene.StartWorker("b", "rank=1,step=5,phase=backward,layer=1,kind=throw,generation=1");
  scene.FormRing(1, {"a", "b"});
  scene.StartSteps();
  scene.PumpUntil(
      [&] {
        for (const v1::Fault& fault : scene.faults()) {
          if (fault.kind() == v1::Fault::EXCEPTION) return true;
        }
        return false;
      },
      "the fault");
  scene.Abort();
  scene.PumpUntil([&] { return scene.aborted().size() == 2; }, "RingAborted");
  EXPECT_TRUE(scene.aborted()[0].state().clean());
  EXPECT_EQ(scene.aborted()[0].state().step(), 5);
  EXPECT_EQ(scene.aborted()[0].state().digest(), scene.aborted()[1].state().digest());
  scene.faults().clear();
  // As if the coordinator had not heard of the last steps.
  scene.records().clear();
  EXPECT_EQ(scene.FormRing(2, {"a", "b"}).source(), v1::RecoveryEpisode::OWN);
  scene.StartSteps();
  scene.PumpUntilFinished();
  EXPECT_EQ(CurveOf(scene), Undisturbed());
  EXPECT_EQ(scene.records().begin()->first, 5) << "the step it goes on from is told again";
  EXPECT_EQ(scene.records().at(5).loss(), Undisturbed().at(5).first);
}

// Brings generation 1 to the loss of rank `lost` after 5 steps and a new process in its place.
void LoseRank(RingScene& scene, int lost) {
  const std::string name = lost == 0 ? "a" : "b";
  for (const int rank : {0, 1}) {
    scene.StartWorker(
        rank == 0 ? "a" : "b",
        absl::StrFormat("rank=%d,step=5,phase=forward,kind=throw,generation=1", lost));
  }
  scene.FormRing(1, {"a", "b"});
  scene.StartSteps();
  scene.PumpUntil([&] { return !scene.faults().empty(); }, "the fault");
  scene.KillWorker(name);
  scene.Abort();
  scene.PumpUntil([&] { return scene.aborted().contains(1 - lost); }, "RingAborted");
  scene.StartWorker(name);
  scene.faults().clear();
}

TEST(SessionLoopTest, ANewProcessGetsTheStateFromItsPeer) {
  for (const int lost : {0, 1}) {
    SCOPED_TRACE(lost);
    RingScene scene(kSteps);
    LoseRank(scene, lost);
    const v1::RestorePlan plan = scene.FormRing(2, {"a", "b"});
    EXPECT_EQ(plan.source(), v1::RecoveryEpisode::PEER);
    // The survivor may have lost its peer before it had counted the votes of the fifth step.
    EXPECT_GE(plan.step(), 4);
    ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
    EXPECT_EQ(scene.ready().at(0).state().digest(), plan.digest());
    EXPECT_EQ(scene.ready().at(1).state().digest(), plan.digest());
    scene.StartSteps();
    scene.PumpUntilFinished();
    EXPECT_EQ(CurveOf(scene), Undisturbed());
  }
}

TEST(SessionLoopTest, TheFaultOfASurvivorNamesTheRankThatIsGone) {
  RingScene scene(/*steps=*/100'000);
  scene.StartPair();
  scene.PumpUntil([&] { return !scene.records().empty(); }, "the first step");
  scene.KillWorker("b");
  scene.PumpUntil([&] { return !scene.faults().empty(); }, "the fault");
  EXPECT_EQ(scene.faults()[0].ring().rank(), 0);
  EXPECT_EQ(scene.faults()[0].kind(), v1::Fault::COMMUNICATION_ERROR);
  EXPECT_THAT(scene.faults()[0].accused_ranks(), testing::ElementsAre(1));
}

TEST(SessionLoopTest, WithoutAnyMemoryTheCheckpointIsLoaded) {
  RingScene scene(kSteps);
  scene.spec().mutable_checkpoint()->set_interval_steps(4);
  scene.StartPair();
  scene.PumpUntil([&] { return scene.CheckpointOf(4).shards_size() == 2; }, "the shards");
  const v1::Checkpoint checkpoint = scene.CheckpointOf(4);
  ASSERT_EQ(checkpoint.shards_size(), 2);
  scene.KillWorker("a");
  scene.KillWorker("b");
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.faults().clear();
  EXPECT_EQ(scene.FormRing(2, {"a", "b"}, &checkpoint).source(), v1::RecoveryEpisode::CHECKPOINT);
  ASSERT_TRUE(scene.faults().empty()) << scene.faults()[0].message();
  EXPECT_EQ(scene.ready().at(1).state().step(), 4);
  // A shard that the killed process did not live to tell of.
  const std::string orphan =
      absl::StrCat(CheckpointDirectory(scene.directory(), 3), "/", ShardFileName(0, 2, 1, "x"));
  fs::create_directories(CheckpointDirectory(scene.directory(), 3));
  fs::copy(checkpoint.shards(0).path(), orphan);
  v1::ExistingCheckpoints existing;
  existing.add_entries()->set_step(4);
  existing.mutable_entries(0)->set_generation(1);
  scene.StartSteps(&existing);
  scene.PumpUntilFinished();
  EXPECT_EQ(CurveOf(scene), Undisturbed());
  scene.PumpUntil([&] { return !fs::exists(orphan); }, "the sweep");
  // It is over when the worker's threads are gone.
  scene.KillWorker("a");
  EXPECT_TRUE(fs::exists(checkpoint.shards(0).path()));
  EXPECT_TRUE(fs::exists(checkpoint.shards(1).path()));
}

// Waits for it: a rank that was still connecting may have told of its peer's end before.
v1::Fault CheckpointFault(RingScene& scene) {
  v1::Fault fault;
  scene.PumpUntil(
      [&] {
        for (const v1::Fault& one : scene.faults()) {
          if (one.kind() == v1::Fault::CHECKPOINT_ERROR) fault = one;
        }
        return fault.kind() == v1::Fault::CHECKPOINT_ERROR;
      },
      "the fault of the checkpoint");
  return fault;
}

TEST(SessionLoopTest, ADamagedCheckpointIsAFaultOfItsKind) {
  RingScene scene(4);
  scene.StartPair();
  scene.PumpUntilFinished();
  v1::Checkpoint checkpoint = scene.CheckpointOf(4);
  fs::resize_file(checkpoint.shards(0).path(), 100);
  scene.Release();
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.FormRing(2, {"a", "b"}, &checkpoint);
  const v1::Fault fault = CheckpointFault(scene);
  EXPECT_TRUE(fault.deterministic());
  EXPECT_THAT(fault.message(), HasSubstr(checkpoint.shards(0).path()));
}

// The coordinator must hear that it is the checkpoint, or it would plan the same one again and
// again.
TEST(SessionLoopTest, ACheckpointThatCannotBeReadIsAFaultOfItsKind) {
  RingScene scene(4);
  scene.StartPair();
  scene.PumpUntilFinished();
  const v1::Checkpoint checkpoint = scene.CheckpointOf(4);
  for (const v1::CheckpointShard& shard : checkpoint.shards()) {
    // An error of the system that is none of NotFound, DataLoss and InvalidArgument.
    fs::remove(shard.path());
    fs::create_symlink(shard.path(), shard.path());
  }
  scene.Release();
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.FormRing(2, {"a", "b"}, &checkpoint);
  EXPECT_FALSE(CheckpointFault(scene).deterministic()) << "it may pass";
}

TEST(SessionLoopTest, SigtermEndsAfterAStepOnAllRanks) {
  RingScene scene(100'000);
  scene.StartPair();
  scene.PumpUntil([&] { return !scene.records().empty(); }, "a step");
  scene.StopWorker("b");
  scene.PumpUntil([&] { return !scene.goodbyes().empty(); }, "Goodbye");
  EXPECT_EQ(scene.JoinWorker("b").code, kExitOk);
  scene.PumpUntil([&] { return scene.aborted().contains(0); }, "RingAborted of rank 0");
  EXPECT_TRUE(scene.aborted()[0].state().clean());
  EXPECT_TRUE(scene.faults().empty());
}

// Waits until the file has this many records: without a coordinator nobody tells of them.
void AwaitLines(const RingScene& scene, int64_t count) {
  const absl::Time deadline = SteadyNow() + absl::Seconds(30);
  while (LinesInFile(scene) < count) {
    ASSERT_LT(SteadyNow(), deadline) << "still waiting for step " << count;
    std::this_thread::yield();
  }
}

TEST(SessionLoopTest, TrainingGoesOnWithoutACoordinator) {
  RingScene scene(/*steps=*/100'000);
  scene.StartPair();
  scene.PumpUntil([&] { return !scene.records().empty(); }, "the first step");
  scene.coordinator().Stop();
  // Far more than are made before the workers see the end of their streams.
  const int64_t step = LinesInFile(scene) + 20;
  ASSERT_NO_FATAL_FAILURE(AwaitLines(scene, step));
  scene.coordinator().Restart();
  scene.PumpUntil([&] { return scene.records().contains(step); }, "a step made meanwhile");
  EXPECT_TRUE(scene.faults().empty());
}

TEST(SessionLoopTest, ACoordinatorThatStartsAgainChangesNoLoss) {
  RingScene scene(kSteps);
  scene.StartPair();
  scene.PumpUntil([&] { return !scene.records().empty(); }, "the first step");
  scene.coordinator().Stop();
  scene.coordinator().Restart();
  // Hello is answered on the new streams; steps and RingFinished are told again.
  scene.PumpUntilFinished();
  EXPECT_TRUE(scene.faults().empty());
  EXPECT_EQ(CurveOf(scene), Undisturbed());
}

TEST(SessionLoopTest, GivesUpANameThatAnotherProcessHas) {
  RingScene scene(kSteps);
  scene.limits().name_patience = absl::ZeroDuration();
  scene.StartWorker("a");
  scene.coordinator().Refuse(ToGrpc(
      Unavailable("WORKER_NAME_TAKEN", "another process has the name", absl::ZeroDuration())));
  scene.coordinator().BreakStreams();
  const SessionEnd end = scene.JoinWorker("a");
  EXPECT_EQ(end.code, kExitUsage);
  EXPECT_THAT(end.reason, HasSubstr("another process has the name"));
}

TEST(SessionLoopTest, MissingDataIsAFaultOfItsKind) {
  RingScene scene(kSteps);
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.spec().mutable_data()->set_paths(0, "/nowhere/at/all");
  scene.FormRing(1, {"a", "b"});
  scene.PumpUntil([&] { return !scene.faults().empty(); }, "the fault");
  EXPECT_EQ(scene.faults()[0].kind(), v1::Fault::DATA_ERROR);
  EXPECT_TRUE(scene.faults()[0].deterministic());
  EXPECT_THAT(scene.faults()[0].message(), HasSubstr("/nowhere/at/all"));
}

TEST(SessionLoopTest, NothingIsWrittenOutsideTheSharedDirectory) {
  RingScene scene(kSteps);
  scene.set_shared_directory(scene.folder() + "/shared");
  scene.StartWorker("a");
  scene.StartWorker("b");
  scene.FormRing(1, {"a", "b"});
  scene.PumpUntil([&] { return scene.faults().size() == 2; }, "both faults");
  EXPECT_EQ(scene.faults()[0].where(), "directory");
  EXPECT_TRUE(scene.faults()[0].deterministic());
  EXPECT_THAT(scene.faults()[0].message(), HasSubstr(scene.directory()));
  EXPECT_FALSE(fs::exists(scene.directory())) << "not even a log";
}

}  // namespace
}  // namespace ringmaster::worker
