#include "models/longnet_config.h"

#include <cmath>
#include <functional>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::models {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

LongNetConfig Valid() {
  LongNetConfig config;
  config.layers = 3;
  config.dim = 32;
  config.heads = 4;
  config.kv_heads = 2;
  config.ffn_dim = 64;
  config.vocab_size = 256;
  config.attention.branches = {{16, 1}, {64, 4}};
  return config;
}

TEST(LongNetConfigTest, NamesTheFieldThatDoesNotFit) {
  EXPECT_TRUE(Valid().Validate().ok());
  const struct {
    std::string words;
    std::function<void(LongNetConfig&)> spoil;
  } cases[] = {
      {"model.layers is 0", [](auto& c) { c.layers = 0; }},
      {"model.ffn_dim is -1", [](auto& c) { c.ffn_dim = -1; }},
      {"model.dim is 30; it must be a multiple of model.heads, 4", [](auto& c) { c.dim = 30; }},
      {"model.heads is 4; it must be a multiple of model.kv_heads, 3",
       [](auto& c) { c.kv_heads = 3; }},
      {"even head size", [](auto& c) { c.dim = 12; }},
      {"",
       [](auto& c) {
         c.attention.branches = {{4, 8}};
       }},
      {"model.attention.documents is given",
       [](auto& c) {
         c.attention.documents = {0, 7};
       }},
      {"48 does not divide 64",
       [](auto& c) {
         c.positions = Positions::kXpos;
         c.attention.branches.push_back({48, 1});
       }},
      {"beyond 32768 its factors are above 2^58",
       [](auto& c) {
         c.positions = Positions::kXpos;
         c.attention.branches.push_back({65536, 8});
       }},
      {"model.blocks is given beside model.attention",
       [](auto& c) { c.blocks = attention::BlockPattern(); }},
      {"density of the block pattern is 2",
       [](auto& c) {
         c.attention.branches.clear();
         c.blocks = attention::BlockPattern{.density = 2};
       }},
      {"model.blocks.kind is hierarchical",
       [](auto& c) {
         c.attention.branches.clear();
         c.blocks = attention::BlockPattern{.kind = attention::BlockPattern::Kind::kHierarchical};
       }},
      {"model.blocks.causal is false",
       [](auto& c) {
         c.attention.branches.clear();
         c.blocks = attention::BlockPattern{.causal = false};
       }},
      {"model.blocks.heads is 2; it must be 1 or model.heads, 4",
       [](auto& c) {
         c.attention.branches.clear();
         c.blocks = attention::BlockPattern{.heads = 2};
       }},
      {"a mask has no longest segment",
       [](auto& c) {
         c.attention.branches.clear();
         c.blocks = attention::BlockPattern();
         c.positions = Positions::kXpos;
       }},
  };
  for (const auto& [words, spoil] : cases) {
    LongNetConfig config = Valid();
    spoil(config);
    EXPECT_EQ(config.Validate().code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(config.Validate().ToString(), HasSubstr(words));
  }
  LongNetConfig odd_without_positions = Valid();
  odd_without_positions.dim = 12;
  odd_without_positions.positions = Positions::kNone;
  EXPECT_TRUE(odd_without_positions.Validate().ok());
}

TEST(LongNetConfigTest, ParametersFollowTheDocumentedNamesAndSizes) {
  std::map<std::string, ParameterSpec> specs;
  int64_t elements = 0;
  for (const ParameterSpec& spec : ParameterSpecs(Valid())) {
    specs[spec.name] = spec;
    elements += spec.elements();
  }
  const int64_t block = 2 * 32 + (32 * 32 + 32) * 2 + (16 * 32 + 16) * 2 + 2 * 32 + 2 * 32 +
                        64 * 32 + 64 + 2 * 64 + 32 * 64 + 32;
  EXPECT_EQ(elements, 256 * 32 + 3 * block + 2 * 32);
  EXPECT_EQ(specs.count("output.weight"), 0u);
  EXPECT_THAT(specs.at("layers.2.attention.key.weight").shape, ElementsAre(16, 32));
  EXPECT_THAT(specs.at("layers.0.ffn.down.weight").shape, ElementsAre(32, 64));
  EXPECT_TRUE(specs.at("layers.0.ffn.down.weight").decayed);
  EXPECT_FALSE(specs.at("layers.0.ffn.down.bias").decayed);
  EXPECT_FALSE(specs.at("final_norm.weight").decayed);

  LongNetConfig plain = Valid();
  plain.tied_embeddings = false;
  plain.sub_ln = false;
  bool untied = false;
  for (const ParameterSpec& spec : ParameterSpecs(plain)) {
    untied |= spec.name == "output.weight";
    EXPECT_THAT(spec.name, testing::Not(HasSubstr("sub_norm")));
  }
  EXPECT_TRUE(untied);
}

// MAGNETO's gain of a decoder, sqrt(log(2 layers)), on values and all that follows them.
TEST(LongNetConfigTest, SubLnStartsValuesAndProjectionsLarger) {
  const double gamma = std::sqrt(std::log(6.0));
  std::map<std::string, double> with;
  std::map<std::string, double> without;
  LongNetConfig config = Valid();
  for (const ParameterSpec& spec : ParameterSpecs(config)) with[spec.name] = spec.stddev;
  config.sub_ln = false;
  for (const ParameterSpec& spec : ParameterSpecs(config)) without[spec.name] = spec.stddev;
  for (const auto& [name, gain] : std::map<std::string, double>{{"attention.query", 1},
                                                                {"attention.key", 1},
                                                                {"attention.value", gamma},
                                                                {"attention.output", gamma},
                                                                {"ffn.up", gamma},
                                                                {"ffn.down", gamma}}) {
    const std::string weight = "layers.1." + name + ".weight";
    EXPECT_DOUBLE_EQ(with.at(weight), gain * without.at(weight)) << name;
  }
  EXPECT_DOUBLE_EQ(without.at("layers.1.attention.key.weight"), std::sqrt(2.0 / (32 + 16)));
}

}  // namespace
}  // namespace ringmaster::models
