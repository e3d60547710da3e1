#include "models/longnet.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "models/block.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return a.sub(b).abs().max().item<double>();
}

double Loss(const TestModel& m, const at::Tensor& tokens, const at::Tensor& labels) {
  return m.model
      .NegativeLogLikelihood(m.parameters, WholeSequence(m, tokens.size(1)), tokens, labels)
      .item<double>();
}

// Dropout of two sequences.
LongNet::PassOptions Dropping(double share) {
  LongNet::PassOptions options;
  options.dropout = share;
  options.dropout_seeds = {DropoutSeed(1, 2, 0), DropoutSeed(1, 2, 1)};
  return options;
}

// In bf16 a sum of ones ends at 256.
TEST(BlockTest, ManyRowsOfOneByteAddUpInEveryPrecision) {
  const at::Tensor tokens = at::zeros({1, 5000}, at::kLong);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const at::Tensor sum = EmbedBackward(at::ones({1, 5000, 4}, dtype), tokens, /*vocab_size=*/3);
    EXPECT_EQ(sum.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
    EXPECT_EQ(sum[0][0].item<double>(), 10000) << dtype;
    EXPECT_EQ(sum[1][0].item<double>(), 0);
  }
}

TEST(LongNetTest, GradientsMatchFiniteDifferences) {
  for (const auto& [plain, dropout] : {std::pair{false, 0.0}, {true, 0.0}, {false, 0.3}}) {
    LongNetConfig config = SmallConfig();
    config.tied_embeddings = !plain;
    config.sub_ln = !plain;
    TestModel m(config);
    const at::Tensor tokens = RandomTokens(2, 37, 256, 3);
    const at::Tensor labels = RandomTokens(2, 37, 256, 4);
    labels.select(1, 5).fill_(-1);
    const SequenceShard whole = WholeSequence(m, 37);
    const auto loss_and_gradients = [&](const std::vector<at::Tensor>& gradients) {
      return m.model
          .ForwardBackward(m.parameters, whole, tokens, labels, 0.5, gradients, Dropping(dropout))
          .item<double>();
    };
    const double loss = loss_and_gradients(m.gradients);
    if (dropout == 0) {
      EXPECT_NEAR(loss, Loss(m, tokens, labels), 1e-9);
    } else {
      EXPECT_GT(std::abs(loss - Loss(m, tokens, labels)), 1e-3);
    }
    const std::vector<at::Tensor> unused = m.layout.Views(at::zeros_like(m.flat));
    std::mt19937_64 random(11);
    for (size_t i = 0; i < m.parameters.size(); ++i) {
      const at::Tensor values = m.parameters[i].view(-1);
      const at::Tensor found = m.gradients[i].view(-1);
      // The embedding rows in use, or any element of another parameter.
      const int64_t at = i == 0 ? tokens[0][9].item<int64_t>() * config.dim + 3
                                : static_cast<int64_t>(random() % values.numel());
      const double step = 1e-5;
      const double value = values[at].item<double>();
      values[at] = value + step;
      const double above = loss_and_gradients(unused);
      values[at] = value - step;
      const double below = loss_and_gradients(unused);
      values[at] = value;
      const double expected = 0.5 * (above - below) / (2 * step);
      EXPECT_NEAR(found[at].item<double>(), expected, 1e-6 * (1 + std::abs(expected)))
          << m.layout.specs()[i].name << " [" << at << "]";
    }
  }
}

TEST(LongNetTest, LossIsTheCrossEntropyOfTheLogitsOverManyChunks) {
  // 256 logits: chunks of 4096 rows; 9001 rows are three.
  LongNetConfig config = SmallConfig();
  config.layers = 1;
  TestModel m(config);
  const at::Tensor tokens = RandomTokens(1, 9001, 256, 1);
  const at::Tensor labels = RandomTokens(1, 9001, 256, 2);
  const at::Tensor logits = m.model.Logits(m.parameters, WholeSequence(m, 9001), tokens);
  const double expected =
      at::cross_entropy_loss(logits.view({-1, 256}), labels.view(-1), {}, at::Reduction::Sum)
          .item<double>();
  EXPECT_NEAR(Loss(m, tokens, labels), expected, 1e-8 * expected);
  const at::Tensor with_gradients = m.model.ForwardBackward(m.parameters, WholeSequence(m, 9001),
                                                            tokens, labels, 1, m.gradients, {});
  EXPECT_NEAR(with_gradients.item<double>(), expected, 1e-8 * expected);
}

TEST(LongNetTest, RecomputingBlocksChangesNoBit) {
  TestModel kept(SmallConfig(), at::kFloat);
  TestModel again(SmallConfig(), at::kFloat);
  const at::Tensor tokens = RandomTokens(2, 37, 256, 5);
  for (TestModel* m : {&kept, &again}) {
    LongNet::PassOptions options = Dropping(0.3);
    options.recompute = m == &again;
    m->model.ForwardBackward(m->parameters, WholeSequence(*m, 37), tokens, tokens, 1, m->gradients,
                             options);
  }
  EXPECT_TRUE(kept.flat_gradients.equal(again.flat_gradients));
}

TEST(LongNetTest, HookSeesEveryPhaseInOrder) {
  TestModel m(SmallConfig());
  const at::Tensor tokens = RandomTokens(1, 5, 256, 5);
  std::string seen;
  LongNet::PassOptions options;
  options.hook = [&](Phase phase, int64_t layer) {
    seen += "efLb"[static_cast<int>(phase)] + std::to_string(layer) + " ";
  };
  m.model.ForwardBackward(m.parameters, WholeSequence(m, 5), tokens, tokens, 1, m.gradients,
                          options);
  EXPECT_EQ(seen, "e-1 f0 f1 L-1 b1 b0 ");
}

// Every rank count, also more ranks than tokens, gives the loss and every parameter's gradient of
// one rank.
TEST(LongNetTest, ShardsGiveTheWholeSequencesLossAndGradients) {
  for (const auto positions : {Positions::kRotary, Positions::kXpos}) {
    LongNetConfig config = SmallConfig();
    config.positions = positions;
    const double dropout = positions == Positions::kXpos ? 0.3 : 0;
    if (positions == Positions::kXpos) {
      config.attention.branches = {{8, 1}, {16, 2}, {64, 3}};
    }
    const int64_t tokens_count = 37;
    TestModel whole(config);
    const at::Tensor tokens = RandomTokens(2, tokens_count, 256, 6);
    const at::Tensor labels = RandomTokens(2, tokens_count, 256, 7);
    const double loss = whole.model
                            .ForwardBackward(whole.parameters, WholeSequence(whole, tokens_count),
                                             tokens, labels, 1, whole.gradients, Dropping(dropout))
                            .item<double>();
    for (const int ranks : {2, 3, 5, 40}) {
      for (const bool recompute : {false, true}) {
        const auto map = recompute ? attention::ShardMap::Zigzag(tokens_count, ranks, 1)
                                   : attention::ShardMap::Contiguous(tokens_count, ranks, 1);
        LongNet::PassOptions options = Dropping(dropout);
        options.recompute = recompute;
        const RanksSum sum = ForwardBackwardOnRanks(config, map, tokens, labels, options);
        EXPECT_NEAR(sum.loss, loss, 1e-11 * loss) << ranks << " ranks";
        const std::vector<at::Tensor> sums = whole.layout.Views(sum.flat_gradients);
        for (size_t i = 0; i < sums.size(); ++i) {
          EXPECT_LT(LargestDifference(sums[i], whole.gradients[i]),
                    1e-10 * (1 + whole.gradients[i].abs().max().item<double>()))
              << whole.layout.specs()[i].name << " on " << ranks << " ranks";
        }
      }
    }
  }
}

TEST(LongNetTest, Bf16FollowsTheExactGradients) {
  TestModel exact(SmallConfig());
  const at::Tensor compute = exact.flat.to(at::kBFloat16);
  const at::Tensor accumulated = at::zeros({exact.layout.size()}, at::kFloat);
  const std::vector<at::Tensor> gradients = exact.layout.Views(accumulated);
  const std::vector<at::Tensor> parameters = exact.layout.Views(compute);
  // Longer than what attention sums in fp64 whatever the precision.
  constexpr int64_t kTokens = 320;
  const at::Tensor tokens = RandomTokens(1, kTokens, 256, 8);
  const SequenceShard shard = exact.model.Place(attention::ShardMap::Contiguous(kTokens, 1, 1), 0,
                                                nullptr, compute.options());
  const double loss =
      exact.model.ForwardBackward(parameters, shard, tokens, tokens, 1, gradients, {})
          .item<double>();
  // The same rounded parameters in fp64.
  exact.flat.copy_(compute);
  const double expected = exact.model
                              .ForwardBackward(exact.parameters, WholeSequence(exact, kTokens),
                                               tokens, tokens, 1, exact.gradients, {})
                              .item<double>();
  EXPECT_NEAR(loss, expected, 0.02 * expected);
  const double error = accumulated.to(at::kDouble).sub(exact.flat_gradients).norm().item<double>();
  EXPECT_LT(error, 0.05 * exact.flat_gradients.norm().item<double>());
}

}  // namespace
}  // namespace ringmaster::models
