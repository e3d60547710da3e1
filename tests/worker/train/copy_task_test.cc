// A sequence whose second half repeats its first can be continued only by looking back half a
// sequence. That is further than a rank's tokens reach on a ring of three.
#include <ATen/core/Tensor.h>
#include <ATen/ops/argmax.h>

#include <iostream>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "tests/models/small_models.h"
#include "tests/worker/train/training_ranks.h"

namespace ringmaster::worker {
namespace {

// The token to copy lies 16 back, a multiple of the far branch's dilation.
constexpr int64_t kHalf = 17;
constexpr int64_t kTokens = 2 * kHalf;
constexpr int kSymbols = 16;

std::string CopySequences(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  for (int i = 0; i < count; ++i) {
    std::string half;
    for (int64_t j = 0; j < kHalf; ++j) {
      half += static_cast<char>('a' + random() % kSymbols);
    }
    text += half + half;
  }
  return text + 'a';
}

JobConfig CopyJob(bool far_branch) {
  JobConfig config = SmallJob();
  config.model.dim = 64;
  config.model.heads = 4;
  config.model.kv_heads = 4;
  config.model.ffn_dim = 128;
  config.model.attention.branches = {{4, 1}};
  if (far_branch) {
    config.model.attention.branches.push_back({kTokens, 2});
  }
  config.precision = Precision::kFp32;
  config.optimizer.lr = 3e-3;
  config.schedule = {.warmup_steps = 20, .decay = Decay::kConstant};
  config.steps = 1000;
  config.sequence_length = kTokens;
  config.validation_fraction = 0;
  config.validation_interval = -1;
  config.global_sequences = 16;
  config.micro_sequences = 16;
  config.ring_size = 3;
  return config;
}

// Share of the second half's tokens that the model predicts.
double Accuracy(const TrainingState& state, uint64_t seed) {
  const std::string text = CopySequences(64, seed);
  at::Tensor tokens = at::zeros({64, kTokens}, at::kLong);
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    tokens.mutable_data_ptr<int64_t>()[i] = static_cast<uint8_t>(text[i]);
  }
  const models::SequenceShard shard =
      state.model().Place(attention::ShardMap::Contiguous(kTokens, 1, 1), 0, nullptr,
                          state.compute_parameters()[0].options());
  const at::Tensor guess =
      state.model().Logits(state.compute_parameters(), shard, tokens).argmax(-1);
  return guess.narrow(1, kHalf - 1, kHalf)
      .eq(tokens.narrow(1, kHalf, kHalf))
      .to(at::kDouble)
      .mean()
      .item<double>();
}

TEST(CopyTaskTest, FarBranchesCarryTokensOverMoreThanOneShard) {
  const CorpusFiles files;
  const std::string path = files.Write("copies", CopySequences(3000, 1));
  // The model without far branches gets as many steps as the other one needed.
  int64_t steps_max = 1000;
  for (const bool far_branch : {true, false}) {
    std::vector<RankRun> runs;
    const JobConfig config = CopyJob(far_branch);
    double accuracy = 0;
    int64_t steps = 0;
    while (steps < steps_max && accuracy <= 0.995) {
      RunRanks(config, path, {.steps = 100}, runs);
      steps += 100;
      accuracy = Accuracy(*runs[0].state, 2);
    }
    steps_max = steps;
    std::cout << "far branches " << (far_branch ? "on" : "off") << ": " << accuracy << " after "
              << steps << " steps, loss " << runs[0].steps.back().loss << "\n";
    if (far_branch) {
      EXPECT_GT(accuracy, 0.99);
    } else {
      // 1088 guesses at 1 in 16: 0.0625 with a standard error of 0.0073.
      EXPECT_LT(accuracy, 0.0625 + 5 * 0.0073);
    }
  }
}

}  // namespace
}  // namespace ringmaster::worker
