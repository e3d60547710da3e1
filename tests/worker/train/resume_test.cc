// What a job holds after k steps, given to fresh ranks by whatever way, goes on as if nothing had
// happened.
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/train/training_ranks.h"
#include "worker/train/state_transfer.h"

namespace ringmaster::worker {
namespace {

class ResumeTest : public testing::Test {
 protected:
  CorpusFiles files_;
  std::string path_ = files_.Write("text", SmallText());
};

// As a checkpoint would: tensor by tensor, by name.
std::unique_ptr<TrainingState> Reloaded(const JobConfig& config, const TrainingState& from) {
  JobConfig other_seed = config;
  other_seed.seed = 999;
  std::unique_ptr<TrainingState> state = *TrainingState::Create(other_seed, "cpu");
  state->MarkDirty();
  const auto source = from.NamedTensors();
  const auto target = state->NamedTensors();
  for (size_t i = 0; i < source.size(); ++i) {
    EXPECT_EQ(source[i].name, target[i].name);
    target[i].tensor.copy_(source[i].tensor);
  }
  EXPECT_EQ(state->Digest(), 0u);
  state->MarkClean(from.step());
  EXPECT_EQ(state->Digest(), from.Digest());
  return state;
}

std::vector<double> Losses(const std::vector<RankRun>& runs) {
  std::vector<double> losses;
  for (const StepResult& step : runs[0].steps) {
    losses.push_back(step.loss);
  }
  return losses;
}

TEST_F(ResumeTest, ReloadedStateGivesTheSameBits) {
  for (const Precision precision : {Precision::kFp64, Precision::kFp32, Precision::kBf16}) {
    JobConfig config = SmallJob();
    config.precision = precision;
    config.dropout = 0.2;
    config.attention_dropout = 0.1;
    config.ring_size = 2;
    std::vector<RankRun> straight;
    RunRanks(config, path_, {.steps = 7}, straight);
    std::vector<RankRun> parted;
    RunRanks(config, path_, {.steps = 3}, parted);
    for (RankRun& run : parted) {
      run.state = Reloaded(config, *run.state);
    }
    RunRanks(config, path_, {.steps = 4, .generation = 2}, parted);
    EXPECT_EQ(Losses(parted), Losses(straight));
    EXPECT_EQ(parted[1].state->Digest(), straight[0].state->Digest());
  }
}

TEST_F(ResumeTest, AnotherWorldGoesOnWithTheSameSequences) {
  JobConfig config = SmallJob();
  config.dropout = 0.2;
  config.attention_dropout = 0.1;
  std::vector<RankRun> straight;
  RunRanks(config, path_, {.steps = 9}, straight);
  std::vector<RankRun> parted;
  for (const auto& [ring_size, replicas] : {std::pair{4, 1}, std::pair{1, 2}, std::pair{2, 2}}) {
    config.ring_size = ring_size;
    config.replicas = replicas;
    std::vector<RankRun> next(config.world_size());
    if (!parted.empty()) {
      for (RankRun& run : next) {
        run.state = Reloaded(config, *parted[0].state);
      }
    }
    RunRanks(config, path_, {.steps = 3}, next);
    for (const StepResult& step : next[0].steps) {
      EXPECT_NEAR(step.loss, straight[0].steps[step.step].loss, 1e-9 * step.loss);
    }
    parted = std::move(next);
  }
  EXPECT_EQ(parted[0].state->step(), 9);
}

// Rank 2 kept nothing, rank 1 is a step behind: both get rank 0's.
TEST_F(ResumeTest, PeersCopyTheDonorsState) {
  JobConfig config = SmallJob();
  config.precision = Precision::kFp32;
  config.ring_size = 3;
  std::vector<RankRun> straight;
  RunRanks(config, path_, {.steps = 6}, straight);
  std::vector<RankRun> parted;
  RunRanks(config, path_, {.steps = 2}, parted);
  std::unique_ptr<TrainingState> behind = Reloaded(config, *parted[1].state);
  RunRanks(config, path_, {.steps = 2, .generation = 2}, parted);
  parted[1].state = std::move(behind);
  parted[2].state = *TrainingState::Create(config, "cpu");

  const auto communicators = ConnectInProcess(3);
  const std::vector<int> receivers = {1, 2};
  std::vector<absl::Status> statuses(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      statuses[rank] =
          CopyStateFromPeer(*parted[rank].state, *communicators[rank], 0, receivers, 4);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(statuses[rank].ok()) << statuses[rank];
    EXPECT_EQ(parted[rank].state->Digest(), parted[0].state->Digest());
  }
  RunRanks(config, path_, {.steps = 2, .generation = 3}, parted);
  EXPECT_EQ(Losses(parted), Losses(straight));
}

TEST_F(ResumeTest, ADirtyOrStaleDonorIsRefusedAndALostOneLeavesTheReceiverDirty) {
  const JobConfig config = SmallJob();
  std::unique_ptr<TrainingState> donor = *TrainingState::Create(config, "cpu");
  const std::vector<int> receivers = {1};
  {
    const auto communicators = ConnectInProcess(2);
    EXPECT_EQ(CopyStateFromPeer(*donor, *communicators[0], 0, receivers, 1).code(),
              absl::StatusCode::kFailedPrecondition);
    donor->MarkDirty();
    EXPECT_EQ(CopyStateFromPeer(*donor, *communicators[0], 0, receivers, 0).code(),
              absl::StatusCode::kFailedPrecondition);
  }
  const auto communicators = ConnectInProcess(2);
  std::unique_ptr<TrainingState> receiver = *TrainingState::Create(config, "cpu");
  communicators[0]->Abort("gone");
  EXPECT_FALSE(CopyStateFromPeer(*receiver, *communicators[1], 0, receivers, 0).ok());
  EXPECT_FALSE(receiver->clean());
}

}  // namespace
}  // namespace ringmaster::worker
