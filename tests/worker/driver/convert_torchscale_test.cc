#include "worker/driver/convert_torchscale.h"

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/torchscale_weights.h"
#include "tests/models/torchscale_model.h"
#include "tests/testing/temporary_directory.h"
#include "tests/testing/tensor_file.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/restore.h"
#include "worker/train/job_config.h"
#include "worker/train/training_state.h"
#include "yaml-cpp/yaml.h"

namespace ringmaster::worker {
namespace {

using ::testing::HasSubstr;

class ConvertTorchscaleTest : public ::testing::Test {
 protected:
  ConvertTorchscaleTest() {
    options_.weights = directory_.path() + "/model.safetensors";
    options_.directory = directory_.path() + "/made/";
    options_.heads = args_.heads;
    for (const auto& [w, r] : args_.branches) {
      options_.segment_lengths.push_back(w);
      options_.dilation_rates.push_back(r);
    }
    WriteTensors(options_.weights, models::RandomStateDict(args_, 1));
  }

  const TemporaryDirectory directory_;
  const models::TorchscaleArgs args_;
  ConvertTorchscaleOptions options_;
};

TEST_F(ConvertTorchscaleTest, WhatItWritesIsLoadedAsInitFromDoes) {
  const auto job_file = ConvertTorchscale(options_);
  ASSERT_TRUE(job_file.ok()) << job_file.status();
  const std::string made = directory_.path() + "/made/checkpoints/step-00000000";
  EXPECT_EQ(*job_file, "init_from: '" + made +
                           "'\n"
                           "model: {layers: 2, dim: 24, heads: 6, kv_heads: 6, ffn_dim: 20, "
                           "vocab_size: 50,\n"
                           "        positions: XPOS, tied_embeddings: false, sub_ln: true}\n"
                           "attention: {segment_lengths: [8, 16, 32], dilation_rates: [1, 4, 2],\n"
                           "            offset_mode: TORCHSCALE, mix_gradient: DETACHED}\n");
  const auto manifest = ReadManifestFile(made);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->checkpoint.step(), 0);

  const auto file = safetensors::File::Open(options_.weights);
  const auto imported = models::ImportTorchscale(*file, {args_.heads, args_.branches, false});
  ASSERT_TRUE(imported.ok()) << imported.status();
  JobConfig config;
  config.model = ModelConfigFromSpec(manifest->spec).value();
  EXPECT_EQ(config.model, imported->config);
  config.precision = Precision::kFp64;
  const std::unique_ptr<TrainingState> state = TrainingState::Create(config, "cpu").value();
  const absl::Status restored = RestoreWeights(manifest->checkpoint, *state);
  ASSERT_TRUE(restored.ok()) << restored;
  const auto weights = state->Weights();
  ASSERT_EQ(weights.size(), imported->parameters.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_TRUE(weights[i].tensor.equal(imported->parameters[i])) << weights[i].name;
  }

  const auto again = ConvertTorchscale(options_);
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists);
}

// As YAML reads it.
TEST_F(ConvertTorchscaleTest, QuotesThePath) {
  for (const std::string name : {"it's", "a\"b", "a\\x", "a: b #c"}) {
    options_.directory = directory_.path() + "/" + name;
    const auto job_file = ConvertTorchscale(options_);
    ASSERT_TRUE(job_file.ok()) << job_file.status();
    EXPECT_EQ(YAML::Load(*job_file)["init_from"].as<std::string>(),
              options_.directory + "/checkpoints/step-00000000");
  }
}

TEST_F(ConvertTorchscaleTest, LeavesNothingBehindWhenItRefuses) {
  options_.heads = 5;
  EXPECT_THAT(std::string(ConvertTorchscale(options_).status().message()),
              HasSubstr("model.safetensors: model.dim is 24"));
  options_.heads = 6;
  options_.dilation_rates.pop_back();
  EXPECT_THAT(std::string(ConvertTorchscale(options_).status().message()),
              HasSubstr("3 segment lengths and 2 dilation rates"));
  options_.dilation_rates.push_back(2);
  const std::string made = std::exchange(options_.directory, "");
  EXPECT_EQ(ConvertTorchscale(options_).status().code(), absl::StatusCode::kInvalidArgument);
  options_.directory = made;
  options_.weights = directory_.path() + "/nowhere";
  EXPECT_EQ(ConvertTorchscale(options_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(options_.directory));
}

}  // namespace
}  // namespace ringmaster::worker
