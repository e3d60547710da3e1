#include "worker/train/optimizer.h"

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/train/training_ranks.h"

namespace ringmaster::worker {
namespace {

// Against AdamW written down element by element, over several steps, with clipping in some of them.
TEST(ApplyAdamWTest, AgreesWithTheFormula) {
  JobConfig config = SmallJob();
  config.optimizer.weight_decay = 0.1;
  config.optimizer.clip_norm = 40;
  std::unique_ptr<TrainingState> state = *TrainingState::Create(config, "cpu");
  const int64_t size = state->layout().size();
  std::vector<double> parameters(size);
  std::vector<double> mean(size);
  std::vector<double> square(size);
  std::copy_n(state->parameters().const_data_ptr<double>(), size, parameters.begin());
  for (int64_t step = 0; step < 4; ++step) {
    const double scale = step % 2 == 0 ? 1 : 0.1;
    const at::Tensor gradients = at::randn({size}, at::kDouble).mul_(scale);
    const std::vector<double> g(gradients.const_data_ptr<double>(),
                                gradients.const_data_ptr<double>() + size);
    const double norm = gradients.norm().item<double>();
    ASSERT_EQ(norm > 40, step % 2 == 0);
    const double rate = 0.01 * static_cast<double>(step + 1);
    const double clip = norm > 40 ? 40 / norm : 1;
    for (int64_t i = 0; i < size; ++i) {
      const double decay = i < state->layout().decayed_size() ? 0.1 : 0;
      parameters[i] *= 1 - rate * decay;
      mean[i] = 0.9 * mean[i] + 0.1 * clip * g[i];
      square[i] = 0.98 * square[i] + 0.02 * clip * clip * g[i] * g[i];
      const double corrected = mean[i] / (1 - std::pow(0.9, step + 1));
      const double deviation = std::sqrt(square[i] / (1 - std::pow(0.98, step + 1)));
      parameters[i] -= rate * corrected / (deviation + 1e-8);
    }
    ApplyAdamW(config.optimizer, rate, norm, gradients, FaultPoint(), *state);
    EXPECT_EQ(state->step(), step + 1);
    EXPECT_TRUE(state->clean());
  }
  for (int64_t i = 0; i < size; ++i) {
    ASSERT_NEAR(state->parameters().const_data_ptr<double>()[i], parameters[i], 1e-10) << i;
  }
}

// Of several pieces, the last of them short; what is not finite stays so.
TEST(GradientNormTest, IsOfAllPieces) {
  const at::Tensor gradients = at::full({9'000'001}, 2, at::kFloat);
  EXPECT_NEAR(GradientNorm(gradients), 2 * std::sqrt(9'000'001.0), 1e-9);
  EXPECT_EQ(GradientNorm(gradients.slice(0, 0, 16)), 8);
  gradients[9'000'000] = 1e30;
  EXPECT_NEAR(GradientNorm(gradients) / static_cast<double>(1e30f), 1, 1e-12);
  gradients[0] = std::nan("");
  EXPECT_TRUE(std::isnan(GradientNorm(gradients)));
}

TEST(TrainingStateTest, DigestTellsEveryPartApart) {
  const JobConfig config = SmallJob();
  std::unique_ptr<TrainingState> state = *TrainingState::Create(config, "cpu");
  const uint64_t base = state->Digest();
  EXPECT_EQ((*TrainingState::Create(config, "cpu"))->Digest(), base);
  for (const at::Tensor& part : {state->parameters(), state->exp_avg(), state->exp_avg_sq()}) {
    part[5].add_(1e-12);
    EXPECT_NE(state->Digest(), base);
    part[5].sub_(1e-12);
  }
  state->MarkClean(1);
  EXPECT_NE(state->Digest(), base);
  state->MarkDirty();
  EXPECT_EQ(state->Digest(), 0u);
}

TEST(TrainingStateTest, SaysWhatDoesNotFit) {
  JobConfig config = SmallJob();
  config.model.heads = 3;
  EXPECT_EQ(TrainingState::Create(config, "cpu").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(TrainingState::Create(SmallJob(), "cuda").ok()) << "there is no device here";
}

}  // namespace
}  // namespace ringmaster::worker
