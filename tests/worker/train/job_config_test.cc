#include "worker/train/job_config.h"

#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/train/resolved_spec.h"

namespace ringmaster::worker {
namespace {

using testing::HasSubstr;

TEST(JobConfigTest, ReadsAResolvedSpec) {
  v1::TrainingJobSpec spec = ResolvedSpec();
  spec.set_dropout(0.25);
  const absl::StatusOr<JobConfig> config = JobConfigFromSpec(spec);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.kv_heads, 2);
  EXPECT_EQ(config->model.positions, models::Positions::kRotary);
  ASSERT_EQ(config->model.attention.branches.size(), 3u);
  EXPECT_EQ(config->model.attention.branches[2], (attention::Branch{512, 4}));
  EXPECT_TRUE(config->model.attention.causal);
  EXPECT_EQ(config->world_size(), 4);
  EXPECT_EQ(config->tokens_per_step(), 4 * 320);
  EXPECT_EQ(config->optimizer.beta2, 0.98);
  EXPECT_EQ(config->schedule.decay, Decay::kCosine);
  EXPECT_EQ(config->data_seed, 3u);
  EXPECT_EQ(config->seed, 5u);
  EXPECT_EQ(config->validation_interval, 50);
  EXPECT_EQ(config->dropout, 0.25);
}

TEST(JobConfigTest, AModelIsReadBackAsItWasSet) {
  for (const auto positions :
       {models::Positions::kRotary, models::Positions::kXpos, models::Positions::kNone}) {
    models::LongNetConfig model = ModelConfigFromSpec(ResolvedSpec()).value();
    model.positions = positions;
    model.attention.branches = {{64, 1}, {128, 8}};
    model.attention.offset_mode = attention::OffsetMode::kTorchscale;
    model.attention.mix_gradient = attention::MixGradient::kDetached;
    model.tied_embeddings = false;
    model.sub_ln = false;
    v1::TrainingJobSpec spec;
    spec.mutable_attention()->add_segment_lengths(7);
    ASSERT_TRUE(SetModel(model, spec).ok());
    const auto read = ModelConfigFromSpec(spec);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, model);
  }
}

TEST(JobConfigTest, AModelTooLargeForASpecIsRefused) {
  models::LongNetConfig model = ModelConfigFromSpec(ResolvedSpec()).value();
  v1::TrainingJobSpec spec;
  model.vocab_size = (int64_t{1} << 31) - 1;
  EXPECT_TRUE(SetModel(model, spec).ok());
  model.vocab_size += 1;
  EXPECT_EQ(SetModel(model, spec),
            absl::InvalidArgumentError("model.vocab_size is 2147483648; a job's is below 2^31"));
}

TEST(JobConfigTest, NamesTheFieldThatIsWrong) {
  const struct {
    std::string name;
    std::function<void(v1::TrainingJobSpec&)> spoil;
  } cases[] = {
      {"model.layers", [](auto& spec) { spec.mutable_model()->clear_layers(); }},
      {"model.sub_ln", [](auto& spec) { spec.mutable_model()->clear_sub_ln(); }},
      {"optimizer.lr", [](auto& spec) { spec.mutable_optimizer()->clear_lr(); }},
      {"schedule.decay", [](auto& spec) { spec.mutable_schedule()->clear_decay(); }},
      {"resources.threads", [](auto& spec) { spec.clear_resources(); }},
      {"validation.interval_steps", [](auto& spec) { spec.clear_validation(); }},
      {"model.dim", [](auto& spec) { spec.mutable_model()->set_dim(33); }},
      {"model.heads", [](auto& spec) { spec.mutable_model()->set_kv_heads(3); }},
      {"dilation_rates",
       [](auto& spec) { spec.mutable_attention()->mutable_dilation_rates()->RemoveLast(); }},
      {"batch.global_sequences", [](auto& spec) { spec.mutable_batch()->set_global_sequences(3); }},
      {"model.vocab_size", [](auto& spec) { spec.mutable_model()->set_vocab_size(255); }},
      {"data.validation_fraction",
       [](auto& spec) { spec.mutable_data()->set_validation_fraction(0); }},
  };
  for (const auto& [name, spoil] : cases) {
    v1::TrainingJobSpec spec = ResolvedSpec();
    spoil(spec);
    const absl::Status status = JobConfigFromSpec(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(status.ToString(), HasSubstr(name));
  }
}

TEST(LearningRateTest, WarmsUpThenDecaysToItsFloor) {
  const OptimizerConfig optimizer = {.lr = 2};
  const auto rate = [&](Decay decay, double power, int64_t step) {
    return LearningRate(optimizer, {10, decay, 0.1, power}, 110, step);
  };
  for (const Decay decay : {Decay::kCosine, Decay::kPolynomial, Decay::kConstant}) {
    EXPECT_DOUBLE_EQ(rate(decay, 1, 0), 0.2);
    EXPECT_DOUBLE_EQ(rate(decay, 1, 8), 1.8);
    EXPECT_DOUBLE_EQ(rate(decay, 1, 9), 2);
  }
  EXPECT_DOUBLE_EQ(rate(Decay::kCosine, 1, 59), 1.1);
  EXPECT_DOUBLE_EQ(rate(Decay::kCosine, 1, 109), 0.2);
  EXPECT_DOUBLE_EQ(rate(Decay::kPolynomial, 1, 59), 1.1);
  EXPECT_DOUBLE_EQ(rate(Decay::kPolynomial, 2, 59), 0.2 + 1.8 * 0.25);
  EXPECT_DOUBLE_EQ(rate(Decay::kPolynomial, 2, 109), 0.2);
  EXPECT_DOUBLE_EQ(rate(Decay::kPolynomial, 2, 500), 0.2);
  EXPECT_DOUBLE_EQ(rate(Decay::kConstant, 1, 109), 2);
  // Warm-up as long as the job, and none.
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, {10, Decay::kCosine, 0.1, 1}, 10, 9), 2);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, {0, Decay::kConstant, 0.1, 1}, 10, 0), 2);
}

}  // namespace
}  // namespace ringmaster::worker
