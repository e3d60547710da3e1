#include "models/torchscale_weights.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/longnet.h"
#include "models/parameters.h"
#include "tests/models/small_models.h"
#include "tests/models/torchscale_model.h"
#include "tests/testing/temporary_directory.h"
#include "tests/testing/tensor_file.h"

namespace ringmaster::models {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::StatusOr<TorchscaleImport> Import(const StateDict& weights, const TorchscaleModel& model) {
  at::set_num_threads(1);
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/model.safetensors";
  WriteTensors(path, weights);
  auto file = safetensors::File::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return ImportTorchscale(*file, model);
}

TorchscaleModel ModelOf(const TorchscaleArgs& args) {
  return {args.heads, args.branches, !args.no_scale_embedding};
}

SequenceShard Whole(const LongNet& model, int64_t tokens) {
  return model.Place(attention::ShardMap::Contiguous(tokens, 1, 1), 0, nullptr,
                     at::TensorOptions().dtype(at::kDouble));
}

// All that a state dict may vary in, over sequences that end within segments or are shorter than
// some; six heads at rate 4 leave residues that no head selects.
TEST(TorchscaleWeightsTest, TheImportedModelGivesTorchscalesLogits) {
  for (int variant = 0; variant < 16; ++variant) {
    TorchscaleArgs args;
    args.subln = (variant & 1) != 0;
    args.xpos_rel_pos = (variant & 2) != 0;
    args.share_input_output_embed = (variant & 4) != 0;
    args.no_scale_embedding = (variant & 8) != 0;
    const StateDict weights = RandomStateDict(args, 100 + variant);
    const auto imported = Import(weights, ModelOf(args));
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(imported->config.tied_embeddings, args.share_input_output_embed);
    EXPECT_EQ(imported->config.sub_ln, args.subln);
    const LongNet model = *LongNet::Create(imported->config);
    for (const int64_t count : {1, 20, 150}) {
      const at::Tensor tokens = RandomTokens(2, count, args.vocab_size, 7);
      const at::Tensor expected = TorchscaleLogits(args, weights, tokens);
      const at::Tensor found = model.Logits(imported->parameters, Whole(model, count), tokens);
      EXPECT_GT(expected.abs().max().item<double>(), 1);
      EXPECT_LT((found - expected).abs().max().item<double>(), 1e-10)
          << "variant " << variant << ", " << count << " tokens";
    }
  }
}

// Training goes on as torchscale's would: gradients are those of its detached mix. Embeddings are
// neither scaled nor tied, so that gradients are laid out as weights are, and importing does it.
TEST(TorchscaleWeightsTest, GradientsAreTorchscalesToo) {
  TorchscaleArgs args;
  args.no_scale_embedding = false;
  StateDict weights = RandomStateDict(args, 3);
  const auto imported = Import(weights, ModelOf(args));
  ASSERT_TRUE(imported.ok()) << imported.status();
  const at::Tensor tokens = RandomTokens(2, 60, args.vocab_size, 8);
  const at::Tensor labels = RandomTokens(2, 60, args.vocab_size, 9);

  std::vector<at::Tensor> leaves;
  std::vector<std::string> names;
  for (auto& [name, tensor] : weights) {
    if (absl::StrContains(name, "xpos")) continue;
    names.push_back(name);
    leaves.push_back(tensor.set_requires_grad(true));
  }
  const at::Tensor loss =
      at::cross_entropy_loss(TorchscaleLogits(args, weights, tokens).view({-1, args.vocab_size}),
                             labels.view(-1), {}, at::Reduction::Sum);
  const auto found = torch::autograd::grad({loss}, leaves, {at::ones_like(loss)});
  for (size_t i = 0; i < names.size(); ++i) weights[names[i]] = found[i];
  for (auto& [name, tensor] : weights) tensor = tensor.detach();
  const auto expected = Import(weights, ModelOf(args));
  ASSERT_TRUE(expected.ok()) << expected.status();

  const LongNet model = *LongNet::Create(imported->config);
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : imported->parameters) {
    gradients.push_back(at::zeros_like(parameter));
  }
  model.ForwardBackward(imported->parameters, Whole(model, 60), tokens, labels, 1, gradients, {});
  const std::vector<ParameterSpec> specs = ParameterSpecs(imported->config);
  for (size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_LT((gradients[i] - expected->parameters[i]).abs().max().item<double>(), 1e-9)
        << specs[i].name;
  }
}

// As fairseq stores it, in less precision: the same values, in fp32.
TEST(TorchscaleWeightsTest, ReadsEveryPrecisionAndThePrefixedNames) {
  const TorchscaleArgs args;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    StateDict stored, exact;
    for (const auto& [name, tensor] : RandomStateDict(args, 4)) {
      stored["decoder." + name] = tensor.to(dtype);
      exact[name] = tensor.to(dtype).to(at::kDouble);
    }
    const auto found = Import(stored, ModelOf(args));
    const auto expected = Import(exact, ModelOf(args));
    ASSERT_TRUE(found.ok() && expected.ok()) << found.status() << expected.status();
    EXPECT_EQ(found->config, expected->config);
    for (size_t i = 0; i < found->parameters.size(); ++i) {
      EXPECT_TRUE(found->parameters[i].equal(expected->parameters[i].to(at::kFloat))) << dtype;
    }
  }
}

TEST(TorchscaleWeightsTest, TiedEmbeddingsMayBeStoredOnce) {
  TorchscaleArgs args;
  args.share_input_output_embed = true;
  StateDict weights = RandomStateDict(args, 5);
  weights.erase("output_projection.weight");
  const auto imported = Import(weights, ModelOf(args));
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_TRUE(imported->config.tied_embeddings);
}

TEST(TorchscaleWeightsTest, NamesWhatItCannotTakeOver) {
  const TorchscaleArgs args;
  const at::Tensor any = at::zeros({6, 4}, at::kDouble);
  const auto add = [&](const char* name) {
    return [=](StateDict& weights) { weights[name] = any; };
  };
  const auto remove = [](const char* name) {
    return [=](StateDict& weights) { weights.erase(name); };
  };
  const struct {
    std::function<void(StateDict&)> change;
    const char* tensor;
    const char* why;
  } cases[] = {
      {add("layers.1.moe_layer.gate.wg.weight"), "layers.1.moe_layer.gate.wg.weight", "experts"},
      {add("self_attn_relative_position.relative_attention_bias.weight"),
       "relative_attention_bias.weight", "relative position bias"},
      {add("embed_positions.weight"), "embed_positions.weight", "absolute positions"},
      {add("layernorm_embedding.bias"), "layernorm_embedding.bias", "LayerNorm of embeddings"},
      {add("layers.0.encoder_attn.k_proj.weight"), "encoder_attn.k_proj", "cross attention"},
      {add("encoder.layers.0.ffn.fc1.bias"), "encoder.layers.0", "encoder"},
      {add("layers.0.self_attn.k_proj.A.weight"), "k_proj.A.weight", "multiway"},
      {add("layers.0.self_attn.gate.weight"), "layers.0.self_attn.gate.weight", "not one of"},
      {add("version"), "version", "not one of"},
      {add("layers.2.ffn.fc1.weight"), "layers.2.", "missing"},
      {add("layers.1000000.ffn.fc1.weight"), "layers.1000000.", "others are missing"},
      {add("layers.9223372036854775807.x"), "layers.9223372036854775807.x", "others are missing"},
      {add("layers.-1.x"), "layers.-1.x", "layer"},
      {remove("embed_tokens.weight"), "embed_tokens.weight", "missing"},
      {remove("layer_norm.weight"), "layer_norm.weight", "post-LN"},
      {remove("layers.1.ffn.fc2.bias"), "layers.1.ffn.fc2.bias", "missing"},
      {remove("layers.1.self_attn.inner_attn_ln.bias"), "layers.1.self_attn.inner_attn_ln.bias",
       "missing"},
      {remove("layers.0.self_attn.xpos.scale"), "layers.1.self_attn.xpos.scale", "not one of"},
      {remove("layers.1.self_attn.xpos.scale"), "layers.1.self_attn.xpos.scale", "missing"},
      {add("layers.1.self_attn.xpos.scale"), "layers.1.self_attn.xpos.scale",
       "shape [6, 4]; with 6 heads it should be [2]"},
      {[](StateDict& w) { w["layers.1.self_attn.xpos.scale"] *= 1.1; },
       "layers.1.self_attn.xpos.scale", "heads of 4"},
      {add("layers.1.ffn.fc1.weight"), "layers.1.ffn.fc1.weight",
       "shape [6, 4]; beside the others it should be [20, 24]"},
      {[](StateDict& w) { w["embed_tokens.weight"] = w["layer_norm.bias"]; }, "embed_tokens.weight",
       "1 dimensions"},
      {[](StateDict& w) { w["layer_norm.bias"] = w["layer_norm.bias"].to(at::kLong); },
       "layer_norm.bias", "I64"},
      {[](StateDict& w) { w["layer_norm.bias"][3] = std::numeric_limits<double>::quiet_NaN(); },
       "layer_norm.bias", "not finite"},
  };
  for (const auto& [change, tensor, why] : cases) {
    StateDict weights = RandomStateDict(args, 6);
    change(weights);
    const auto imported = Import(weights, ModelOf(args));
    EXPECT_EQ(imported.status().code(), absl::StatusCode::kInvalidArgument) << tensor << why;
    EXPECT_THAT(std::string(imported.status().message()), AllOf(HasSubstr(tensor), HasSubstr(why)));
  }
}

TEST(TorchscaleWeightsTest, RefusesOptionsThatDoNotFit) {
  TorchscaleArgs args;
  const StateDict weights = RandomStateDict(args, 7);
  const auto why = [&](const TorchscaleModel& model) {
    return std::string(Import(weights, model).status().message());
  };
  EXPECT_THAT(why({6, {{16, 3}}, false}), HasSubstr("3 does not divide its segment length 16"));
  EXPECT_THAT(why({0, args.branches, false}), HasSubstr("heads"));
  EXPECT_THAT(why({5, args.branches, false}), HasSubstr("heads"));
  EXPECT_THAT(why({4, args.branches, false}), HasSubstr("with 4 heads it should be [3]"));
  EXPECT_THAT(why({6, {}, false}), HasSubstr("branch"));
  EXPECT_THAT(why({6, {{8, 1}, {12, 2}}, false}), HasSubstr("8 does not divide 12"));
}

}  // namespace
}  // namespace ringmaster::models
