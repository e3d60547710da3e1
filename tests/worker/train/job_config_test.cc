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
  spec.mutable_attention()->set_dropout(0.125);
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
  EXPECT_EQ(config->attention_dropout, 0.125);
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

v1::TrainingJobSpec ResolvedBlocks() {
  v1::TrainingJobSpec spec = ResolvedSpec();
  spec.clear_attention();
  v1::BlockSparseSpec& blocks = *spec.mutable_attention()->mutable_block_sparse();
  blocks.set_kind(v1::BlockSparseSpec::RANDOM);
  blocks.set_density(0.5);
  blocks.set_block_size(64);
  blocks.set_seed(7);
  blocks.set_per_head(true);
  return spec;
}

TEST(JobConfigTest, ReadsBlockSparseAttention) {
  using Kind = attention::BlockPattern::Kind;
  v1::TrainingJobSpec spec = ResolvedBlocks();
  auto model = ModelConfigFromSpec(spec);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->attention, attention::DilatedAttentionOptions());
  EXPECT_EQ(model->blocks,
            (attention::BlockPattern{
                .kind = Kind::kRandom, .density = 0.5, .heads = 4, .block_size = 64, .seed = 7}));
  for (const Kind kind :
       {Kind::kLocalWindow, Kind::kDilatedSparse, Kind::kGlobalLocal, Kind::kRandom}) {
    for (const int64_t heads : {1, 4}) {
      model->blocks->kind = kind;
      model->blocks->heads = heads;
      v1::TrainingJobSpec set = ResolvedSpec();
      ASSERT_TRUE(SetModel(*model, set).ok());
      const auto read = ModelConfigFromSpec(set);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, *model);
    }
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

// Makes the job one of block-sparse attention.
v1::BlockSparseSpec& Blocks(v1::TrainingJobSpec& spec) {
  spec = ResolvedBlocks();
  return *spec.mutable_attention()->mutable_block_sparse();
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
      {"attention.block_sparse.kind", [](auto& spec) { Blocks(spec).clear_kind(); }},
      {"attention.block_sparse.kind has",
       [](auto& spec) { Blocks(spec).set_kind(static_cast<v1::BlockSparseSpec::Kind>(9)); }},
      {"attention.block_sparse.density", [](auto& spec) { Blocks(spec).clear_density(); }},
      {"attention.block_sparse.block_size", [](auto& spec) { Blocks(spec).clear_block_size(); }},
      {"hierarchical",
       [](auto& spec) { Blocks(spec).set_kind(v1::BlockSparseSpec::HIERARCHICAL); }},
      {"block_size of the block mask", [](auto& spec) { Blocks(spec).set_block_size(100); }},
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
