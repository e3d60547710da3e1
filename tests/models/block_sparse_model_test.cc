#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "attention/plan/block_patterns.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/block.h"
#include "models/longnet.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

using attention::BlockPattern;
using Kind = BlockPattern::Kind;

// Five blocks, of which the last is short; longer than what is summed in fp64 whatever the dtype.
constexpr int64_t kTokens = 301;

LongNetConfig WithBlocks(const BlockPattern& blocks) {
  LongNetConfig config = SmallConfig();
  config.attention.branches.clear();
  config.blocks = blocks;
  return config;
}

std::vector<LongNetConfig> Configs() {
  std::vector<LongNetConfig> configs;
  configs.push_back(WithBlocks({.kind = Kind::kLocalWindow, .density = 0.4, .block_size = 64}));
  configs.push_back(WithBlocks({.kind = Kind::kGlobalLocal, .density = 0.5, .block_size = 128}));
  configs.push_back(
      WithBlocks({.kind = Kind::kRandom, .density = 0.5, .heads = 4, .block_size = 64, .seed = 3}));
  configs.back().positions = Positions::kNone;
  configs.back().tied_embeddings = false;
  return configs;
}

// [mask heads, tokens, tokens]: where a query does not see a key.
at::Tensor Hidden(const LongNetConfig& config) {
  const attention::BlockMask mask = *MakeBlockMask(*config.blocks, kTokens);
  const int64_t heads = mask.shape().heads, size = mask.shape().block_size;
  at::Tensor hidden = at::ones({heads, kTokens, kTokens}, at::kBool);
  auto hide = hidden.accessor<bool, 3>();
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t query = 0; query < kTokens; ++query) {
      for (int64_t key = 0; key <= query; ++key) {
        hide[head][query][key] = !mask.visible(head, query / size, key / size);
      }
    }
  }
  return hidden;
}

// The model with its attention written down densely, differentiable as a whole.
at::Tensor DenseLoss(const LongNetConfig& config, const std::vector<at::Tensor>& parameters,
                     const RotaryTables& rotary, const at::Tensor& tokens,
                     const at::Tensor& labels) {
  const at::Tensor hidden = Hidden(config);
  const int64_t group = config.heads / config.kv_heads, count = BlockParameters(config);
  at::Tensor x = Embed(parameters[0], tokens);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto block = absl::MakeConstSpan(parameters).subspan(1 + layer * count, count);
    x = DecoderBlock(config, block, rotary, x, [&](const QueryKeyValue& qkv) {
      const at::Tensor q = qkv.query.transpose(1, 2);
      const at::Tensor k = qkv.key.repeat_interleave(group, 2).transpose(1, 2);
      const at::Tensor v = qkv.value.repeat_interleave(group, 2).transpose(1, 2);
      const at::Tensor scores =
          q.matmul(k.transpose(-1, -2)) / std::sqrt(static_cast<double>(config.head_dim()));
      return scores.masked_fill(hidden, -std::numeric_limits<double>::infinity())
          .softmax(-1)
          .matmul(v)
          .transpose(1, 2);
    });
  }
  const int64_t norm = 1 + config.layers * count;
  const at::Tensor& output = parameters[config.tied_embeddings ? 0 : norm + 2];
  const at::Tensor logits =
      OutputLogits(parameters[norm], parameters[norm + 1], output, x.reshape({-1, config.dim}));
  return at::cross_entropy_loss(logits, labels.view(-1), {}, at::Reduction::Sum);
}

TEST(BlockSparseModelTest, IsTheModelOfTheDenseMask) {
  const at::Tensor tokens = RandomTokens(2, kTokens, 256, 1);
  const at::Tensor labels = RandomTokens(2, kTokens, 256, 2);
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const double tolerance = dtype == at::kDouble ? 1e-11 : 2e-5;
    for (const LongNetConfig& config : Configs()) {
      TestModel m(config, dtype);
      const SequenceShard shard = WholeSequence(m, kTokens);
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& parameter : m.parameters) {
        leaves.push_back(parameter.clone().set_requires_grad(true));
      }
      const at::Tensor expected = DenseLoss(config, leaves, shard.rotary, tokens, labels);
      const std::vector<at::Tensor> gradients = torch::autograd::grad({expected}, leaves);
      const double loss =
          m.model.ForwardBackward(m.parameters, shard, tokens, labels, 1, m.gradients, {})
              .item<double>();
      EXPECT_NEAR(loss, expected.item<double>(), tolerance * loss);
      EXPECT_NEAR(m.model.NegativeLogLikelihood(m.parameters, shard, tokens, labels).item<double>(),
                  loss, tolerance * loss);
      // All rows of a key's bias shift by as much: its gradient is zero but for rounding.
      const double largest = m.flat_gradients.abs().max().item<double>();
      for (size_t i = 0; i < gradients.size(); ++i) {
        EXPECT_LT(m.gradients[i].sub(gradients[i]).abs().max().item<double>(), tolerance * largest)
            << m.layout.specs()[i].name << " of " << dtype;
      }
    }
  }
}

TEST(BlockSparseModelTest, ThreeRanksGiveTheLossAndGradientsOfOne) {
  const at::Tensor tokens = RandomTokens(2, kTokens, 256, 3);
  const at::Tensor labels = RandomTokens(2, kTokens, 256, 4);
  for (const LongNetConfig& config : Configs()) {
    TestModel whole(config);
    const double loss = whole.model
                            .ForwardBackward(whole.parameters, WholeSequence(whole, kTokens),
                                             tokens, labels, 1, whole.gradients, {})
                            .item<double>();
    const double largest = whole.flat_gradients.abs().max().item<double>();
    for (const bool recompute : {false, true}) {
      for (const auto strategy : {attention::Strategy::kGrouped, attention::Strategy::kHeads}) {
        const auto map = recompute ? attention::ShardMap::Zigzag(kTokens, 3, 1)
                                   : attention::ShardMap::Contiguous(kTokens, 3, 64);
        LongNet::PassOptions options;
        options.recompute = recompute;
        const RanksSum sum = ForwardBackwardOnRanks(config, map, tokens, labels, options, strategy);
        EXPECT_NEAR(sum.loss, loss, 1e-11 * loss);
        EXPECT_LT(sum.flat_gradients.sub(whole.flat_gradients).abs().max().item<double>(),
                  1e-11 * largest);
      }
    }
  }
}

TEST(BlockSparseModelTest, MakesAMaskOncePerLength) {
  const LongNet model = *LongNet::Create(Configs()[2]);
  const auto row = [&](int64_t tokens) {
    const attention::AttentionPattern pattern = *model.Pattern(tokens);
    return std::get<attention::BlockSparseAttentionOptions>(pattern).mask.Row(0, 0).data();
  };
  const uint64_t* first = row(kTokens);
  EXPECT_EQ(row(kTokens), first);
  const attention::AttentionPattern kept = *model.Pattern(kTokens);
  EXPECT_NE(row(640), first);
  EXPECT_EQ(*model.Pattern(kTokens), kept);
}

TEST(BlockSparseModelTest, RefusesSequencesOfTooManyBlocks) {
  const TestModel m(Configs()[0]);
  const int64_t tokens = int64_t{1} << 40;
  EXPECT_THAT(m.model.Pattern(tokens).status().ToString(), testing::HasSubstr("16 GiB"));
}

}  // namespace
}  // namespace ringmaster::models
