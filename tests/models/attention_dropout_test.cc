#include <ATen/core/Tensor.h>

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "models/longnet.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

constexpr int64_t kTokens = 141;

LongNet::PassOptions Dropping(double share, int64_t step = 2) {
  LongNet::PassOptions options;
  options.attention_dropout = share;
  options.dropout_seeds = {DropoutSeed(1, step, 0), DropoutSeed(1, step, 1)};
  return options;
}

// Branches, and masks of which each head has its own.
std::vector<LongNetConfig> Configs() {
  std::vector<LongNetConfig> configs(2, SmallConfig());
  configs[1].attention.branches.clear();
  configs[1].blocks = attention::BlockPattern{.kind = attention::BlockPattern::Kind::kRandom,
                                              .density = 0.6,
                                              .heads = configs[1].heads,
                                              .block_size = 64};
  return configs;
}

double Pass(TestModel& m, const SequenceShard& shard, const at::Tensor& tokens,
            const LongNet::PassOptions& options) {
  return m.model.ForwardBackward(m.parameters, shard, tokens, tokens, 1, m.gradients, options)
      .item<double>();
}

TEST(AttentionDropoutTest, IsDrawnByStepAndRepeatsItself) {
  for (const LongNetConfig& config : Configs()) {
    TestModel m(config);
    const at::Tensor tokens = RandomTokens(2, kTokens, 256, 1);
    const SequenceShard shard = WholeSequence(m, kTokens);
    const double none = Pass(m, shard, tokens, {});
    EXPECT_EQ(Pass(m, shard, tokens, Dropping(0)), none);
    const double dropped = Pass(m, shard, tokens, Dropping(0.3));
    EXPECT_NE(dropped, none);
    EXPECT_EQ(Pass(m, shard, tokens, Dropping(0.3)), dropped);
    EXPECT_NE(Pass(m, shard, tokens, Dropping(0.3, 3)), dropped);
  }
}

// Layers with the same parameters and inputs would drop the same if they were one call.
TEST(AttentionDropoutTest, IsAnotherOneInEachLayer) {
  LongNetConfig config = SmallConfig();
  config.layers = 1;
  TestModel first(config);
  config.layers = 2;
  TestModel second(config);
  second.flat.zero_();
  // What the first layer adds is zero, the second one is that of the model of one layer.
  for (size_t i = 0; i < second.parameters.size(); ++i) {
    const std::string& name = second.layout.specs()[i].name;
    const std::string other = name.starts_with("layers.1.") ? "layers.0." + name.substr(9) : name;
    for (size_t j = 0; j < first.parameters.size(); ++j) {
      if (first.layout.specs()[j].name == other && !name.starts_with("layers.0.")) {
        second.parameters[i].copy_(first.parameters[j]);
      }
    }
  }
  const at::Tensor tokens = RandomTokens(2, kTokens, 256, 1);
  const auto loss = [&](TestModel& m, double share) {
    return Pass(m, WholeSequence(m, kTokens), tokens, Dropping(share));
  };
  EXPECT_NEAR(loss(second, 0), loss(first, 0), 1e-9 * loss(first, 0));
  EXPECT_GT(std::abs(loss(second, 0.3) - loss(first, 0.3)), 1e-6);
}

TEST(AttentionDropoutTest, ThreeRanksDropWhatOneDrops) {
  const at::Tensor tokens = RandomTokens(2, kTokens, 256, 1);
  for (const LongNetConfig& config : Configs()) {
    TestModel whole(config);
    const double loss = Pass(whole, WholeSequence(whole, kTokens), tokens, Dropping(0.3));
    const double largest = whole.flat_gradients.abs().max().item<double>();
    for (const auto strategy : {attention::Strategy::kGrouped, attention::Strategy::kHeads}) {
      const auto map = attention::ShardMap::Zigzag(kTokens, 3, 1);
      LongNet::PassOptions options = Dropping(0.3);
      options.recompute = strategy == attention::Strategy::kHeads;
      const RanksSum sum = ForwardBackwardOnRanks(config, map, tokens, tokens, options, strategy);
      EXPECT_NEAR(sum.loss, loss, 1e-11 * loss);
      EXPECT_LT(sum.flat_gradients.sub(whole.flat_gradients).abs().max().item<double>(),
                1e-11 * largest);
    }
  }
}

}  // namespace
}  // namespace ringmaster::models
