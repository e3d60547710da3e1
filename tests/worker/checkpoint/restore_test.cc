#include "worker/checkpoint/restore.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"
#include "tests/worker/train/resolved_spec.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/checkpoint_writer.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::unique_ptr<TrainingState> NewState(uint64_t seed, int64_t dim = 32) {
  v1::TrainingJobSpec spec = ResolvedSpec();
  spec.set_seed(seed);
  spec.mutable_model()->set_dim(static_cast<int32_t>(dim));
  auto state = TrainingState::Create(JobConfigFromSpec(spec).value(), "cpu");
  EXPECT_TRUE(state.ok()) << state.status();
  return *std::move(state);
}

// As after some steps: moments are not zero.
std::unique_ptr<TrainingState> TrainedState(uint64_t seed, int64_t step) {
  auto state = NewState(seed);
  auto other = NewState(seed + 1);
  state->MarkDirty();
  state->exp_avg().copy_(other->parameters());
  state->exp_avg_sq().copy_(other->parameters().abs());
  state->MarkClean(step);
  return state;
}

class RestoreTest : public ::testing::Test {
 protected:
  // What `ranks` workers write of a state that all of them hold.
  v1::Checkpoint Write(const TrainingState& state, int ranks) {
    v1::Checkpoint checkpoint;
    checkpoint.set_step(state.step());
    checkpoint.set_directory(CheckpointDirectory(directory_, state.step()));
    for (int rank = 0; rank < ranks; ++rank) {
      v1::ShardWritten written;
      {
        CheckpointWriter writer([&](v1::ShardWritten report, absl::Duration) { written = report; });
        ShardIdentity identity{.world_size = ranks,
                               .incarnation = std::string(32, 'a'),
                               .step = state.step(),
                               .job_directory = directory_};
        identity.ring.set_rank(rank);
        identity.ring.set_generation(++generation_);
        const absl::Status begun = writer.Begin(identity, state.NamedTensors());
        EXPECT_TRUE(begun.ok()) << begun;
      }
      EXPECT_EQ(written.error(), "");
      *checkpoint.add_shards() = written.shard();
    }
    return checkpoint;
  }

  const TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
  int64_t generation_ = 0;
};

TEST_F(RestoreTest, AnyNumberOfRanksWritesWhatAnyNumberReads) {
  const auto state = TrainedState(7, 40);
  for (const int ranks : {1, 2, 3, 5}) {
    const v1::Checkpoint checkpoint = Write(*state, ranks);
    ASSERT_EQ(checkpoint.shards_size(), ranks);
    auto restored = NewState(99);
    ASSERT_NE(restored->Digest(), state->Digest());
    const absl::Status status = RestoreState(checkpoint, *restored);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(restored->clean());
    EXPECT_EQ(restored->step(), 40);
    EXPECT_EQ(restored->Digest(), state->Digest()) << ranks << " ranks";
  }
}

TEST_F(RestoreTest, ShardsAreOfSimilarSize) {
  const v1::Checkpoint checkpoint = Write(*TrainedState(7, 40), 3);
  int64_t least = checkpoint.shards(0).bytes();
  int64_t most = least;
  for (const auto& shard : checkpoint.shards()) {
    least = std::min(least, shard.bytes());
    most = std::max(most, shard.bytes());
  }
  EXPECT_LT(most - least, most / 5);
}

TEST_F(RestoreTest, WeightsAloneStartAtStepZero) {
  const auto state = TrainedState(7, 40);
  const v1::Checkpoint checkpoint = Write(*state, 2);
  auto fresh = NewState(99);
  ASSERT_TRUE(RestoreWeights(checkpoint, *fresh).ok());
  EXPECT_EQ(fresh->step(), 0);
  EXPECT_TRUE(fresh->parameters().equal(state->parameters()));
  EXPECT_EQ(fresh->exp_avg().abs().max().item<float>(), 0);
}

TEST_F(RestoreTest, ADamagedCheckpointLeavesTheStateAsItWas) {
  const auto state = TrainedState(7, 40);
  const v1::Checkpoint good = Write(*state, 2);
  auto victim = NewState(99);
  const uint64_t before = victim->Digest();
  const auto expect = [&](const v1::Checkpoint& checkpoint, absl::StatusCode code,
                          const std::string& named) {
    const absl::Status status = RestoreState(checkpoint, *victim);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), HasSubstr(named));
    EXPECT_TRUE(victim->clean());
    EXPECT_EQ(victim->Digest(), before);
  };
  v1::Checkpoint missing = good;
  missing.mutable_shards(1)->set_path(directory_ + "/gone");
  expect(missing, absl::StatusCode::kNotFound, "/gone");
  v1::Checkpoint incomplete = good;
  incomplete.mutable_shards()->RemoveLast();
  expect(incomplete, absl::StatusCode::kInvalidArgument, "holds no tensor");
  const std::string path = good.shards(1).path();
  fs::resize_file(path, good.shards(1).bytes() - 1);
  expect(good, absl::StatusCode::kDataLoss, path);
  fs::resize_file(path, good.shards(1).bytes());
  expect(good, absl::StatusCode::kDataLoss, path);
}

// Reading a large checkpoint takes longer than a worker may take to leave a ring.
TEST_F(RestoreTest, RestoringEndsWhenItIsCancelled) {
  const auto state = TrainedState(7, 40);
  const v1::Checkpoint checkpoint = Write(*state, 2);
  int asked = 0;
  auto restored = NewState(99);
  ASSERT_TRUE(RestoreState(checkpoint, *restored, [&] { return ++asked < 0; }).ok());
  const int last = asked;
  EXPECT_GT(last, 4) << "for each part of a file, and each tensor";
  const uint64_t before = NewState(99)->Digest();
  for (int at = 1; at <= last; ++at) {
    auto victim = NewState(99);
    asked = 0;
    const absl::Status status = RestoreState(checkpoint, *victim, [&] { return ++asked == at; });
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(!victim->clean() || victim->Digest() == before);
  }
}

TEST_F(RestoreTest, AnotherModelIsNamed) {
  const v1::Checkpoint checkpoint = Write(*TrainedState(7, 40), 2);
  auto wider = NewState(1, 64);
  const absl::Status status = RestoreState(checkpoint, *wider);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("has shape ["));
}

TEST_F(RestoreTest, OneShardAtATimeAndTheStateMayGoOn) {
  const auto state = TrainedState(7, 40);
  const uint64_t digest = state->Digest();
  absl::Notification go;
  v1::ShardWritten written;
  CheckpointWriter writer([&](v1::ShardWritten report, absl::Duration) {
    go.WaitForNotification();
    written = report;
  });
  ShardIdentity identity{.world_size = 1,
                         .incarnation = std::string(32, 'a'),
                         .step = 40,
                         .job_directory = directory_};
  ASSERT_TRUE(writer.Begin(identity, state->NamedTensors()).ok());
  // What is written is a copy.
  state->MarkDirty();
  state->parameters().zero_();
  state->MarkClean(41);
  identity.step = 41;
  EXPECT_EQ(writer.Begin(identity, state->NamedTensors()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(writer.AwaitIdle(absl::ZeroDuration(), [] { return false; }));
  EXPECT_FALSE(writer.AwaitIdle(absl::Hours(1), [] { return true; })) << "cancelled";
  go.Notify();
  EXPECT_TRUE(writer.AwaitIdle(absl::Hours(1), [] { return false; }));
  v1::Checkpoint checkpoint;
  checkpoint.set_step(40);
  *checkpoint.add_shards() = written.shard();
  auto restored = NewState(99);
  ASSERT_TRUE(RestoreState(checkpoint, *restored).ok());
  EXPECT_EQ(restored->Digest(), digest);
}

TEST_F(RestoreTest, AFailedWriteIsReportedAndTheNextOneWorks) {
  const auto state = TrainedState(7, 40);
  std::vector<std::string> errors;
  CheckpointWriter writer(
      [&](v1::ShardWritten report, absl::Duration) { errors.push_back(report.error()); });
  std::ofstream(directory_ + "/file") << "in the way";
  ShardIdentity identity{.world_size = 1,
                         .incarnation = std::string(32, 'a'),
                         .step = 40,
                         .job_directory = directory_ + "/file"};
  ASSERT_TRUE(writer.Begin(identity, state->NamedTensors()).ok());
  ASSERT_TRUE(writer.AwaitIdle(absl::Hours(1), [] { return false; }));
  identity.job_directory = directory_;
  ASSERT_TRUE(writer.Begin(identity, state->NamedTensors()).ok());
  ASSERT_TRUE(writer.AwaitIdle(absl::Hours(1), [] { return false; }));
  ASSERT_EQ(errors.size(), 2);
  EXPECT_THAT(errors[0], HasSubstr(directory_ + "/file"));
  EXPECT_EQ(errors[1], "");
}

}  // namespace
}  // namespace ringmaster::worker
