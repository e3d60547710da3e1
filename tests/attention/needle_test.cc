// Chosen blocks find what a window of the same density cannot see, and it is the choice that
// learns.
//
// A sequence is noise with four needles in it, each a key followed by a value; a query, one of the
// keys, asks at the end for the value behind it. The needles lie in other blocks each time, none in
// the first block or the last two. One layer of attention, whose tokens know the one before them.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "attention/adaptive_blocks.h"
#include "attention/block_sparse_attention.h"
#include "attention/plan/block_mask.h"
#include "tests/attention/random.h"

namespace ringmaster::attention {
namespace {

uint64_t g_seed = 1;
int g_steps = 700;
bool g_verbose = false;

constexpr int64_t kBlock = 64, kBlocks = 16, kTokens = kBlock * kBlocks + 1;  // the query is alone
constexpr int64_t kKeys = 4, kValues = 16, kNoise = 16;
constexpr int64_t kVocabulary = kKeys + kValues + kNoise;
constexpr int64_t kSize = 32;   // of the model and of its one head
constexpr int64_t kChosen = 2;  // and the own block, and the first
constexpr int64_t kBatch = 16;
// q and k are of length sqrt(kSize): no score is beyond 3.5, so that attention to the needle stays
// short of all, and a better choice is better.
constexpr double kScale = 3.5 / kSize;

struct Batch {
  at::Tensor tokens;  // [B, N]
  at::Tensor answer;  // [B, queries], or -100 where nothing is asked
};

// Each block begins with a query, if one is drawn whose needle lies three blocks before it or more;
// all train, but what counts is the last one, which is always there.
Batch Samples(Random& random, int64_t count) {
  Batch batch{at::empty({count, kTokens}, at::kLong),
              at::full({count, kBlocks + 1}, -100, at::kLong)};
  auto tokens = batch.tokens.accessor<int64_t, 2>();
  auto answers = batch.answer.accessor<int64_t, 2>();
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t t = 0; t < kTokens; ++t) {
      tokens[b][t] = kKeys + kValues + random.Between(0, kNoise - 1);
    }
    std::vector<int64_t> blocks;
    for (int64_t block = 1; block < kBlocks - 2; ++block) blocks.push_back(block);
    std::vector<int64_t> value(kKeys), place(kKeys);
    for (int64_t key = 0; key < kKeys; ++key) {
      const int64_t at = random.Between(0, static_cast<int64_t>(blocks.size()) - 1);
      place[key] = blocks[at];
      blocks.erase(blocks.begin() + at);
      value[key] = random.Between(0, kValues - 1);
      const int64_t token = place[key] * kBlock + random.Between(1, kBlock - 2);
      tokens[b][token] = key;
      tokens[b][token + 1] = kKeys + value[key];
    }
    for (int64_t block = 1; block <= kBlocks; ++block) {
      const int64_t key = random.Between(0, kKeys - 1);
      if (place[key] + 2 < block) {
        tokens[b][block * kBlock] = key;
        answers[b][block] = value[key];
      }
    }
  }
  return batch;
}

// What one run learns.
enum class Sight { kWindow, kChosen, kDetached };

struct Learner {
  at::Tensor parameter;
  double rate;
};

class Model {
 public:
  Model(Sight sight, uint64_t seed)
      : sight_(sight),
        chooser_(*AdaptiveBlocks::Create({.head_dim = kSize,
                                          .score_dim = 16,
                                          .block_size = kBlock,
                                          .chosen = kChosen,
                                          .scale = kScale},
                                         seed, at::kFloat)),
        window_(*BlockMask::Create(
            {.tokens = kTokens, .block_size = kBlock}, [](int64_t, int64_t query, BlockRow& row) {
              row.Show(0);
              row.ShowRange(std::max<int64_t>(0, query - kChosen), query + 1);
            })) {
    at::manual_seed(seed);
    const auto normal = [](int64_t rows, int64_t columns, double deviation) {
      return at::randn({rows, columns}).mul_(deviation).set_requires_grad(true);
    };
    const double deviation = 1 / std::sqrt(static_cast<double>(kSize));
    token_ = normal(kVocabulary, kSize, 1);
    before_ = normal(kVocabulary, kSize, 1);
    query_ = normal(kSize, kSize, deviation);
    key_ = normal(kSize, kSize, deviation);
    value_ = normal(kSize, kSize, deviation);
    answer_ = normal(kSize, kValues, deviation);
  }

  std::vector<Learner> learners() const {
    std::vector<Learner> all;
    for (const at::Tensor& parameter : {token_, before_, query_, key_, value_, answer_}) {
      all.push_back({parameter, 1e-2});
    }
    // Slower than attention: a choice that is sure too early no longer tries what it does not know.
    if (sight_ == Sight::kChosen) {
      for (const at::Tensor& parameter : chooser_.parameters()) all.push_back({parameter, 3e-3});
    }
    return all;
  }

  // Logits of the answers at the first token of each block: [B, blocks, values].
  at::Tensor Answer(const Batch& batch, std::optional<uint64_t> noise_seed) {
    const at::Tensor previous =
        at::cat({batch.tokens.slice(1, 0, 1), batch.tokens.slice(1, 0, -1)}, 1);
    const at::Tensor x = at::embedding(token_, batch.tokens) + at::embedding(before_, previous);
    const auto project = [&](const at::Tensor& weight) { return x.matmul(weight).unsqueeze(2); };
    const auto normalized = [](const at::Tensor& y) {
      return y * (y.square().mean(-1, true) + 1e-6).rsqrt();
    };
    const at::Tensor q = normalized(project(query_)), k = normalized(project(key_)),
                     v = project(value_);
    at::Tensor out;
    if (sight_ == Sight::kWindow) {
      out = BlockSparseAttention(q, k, v, {.mask = window_, .scale = kScale}).out;
      density_ = window_.Density(/*causal=*/true);
    } else {
      BlockChoice choice = chooser_.Choose(q, k, noise_seed);
      if (sight_ == Sight::kDetached) choice.log_gates = choice.log_gates.detach();
      density_ = choice.density;
      entropy_ = choice.entropy;
      out = AttendToChoice(q, k, v, choice).out;
    }
    return out.squeeze(2).slice(1, 0, std::nullopt, kBlock).matmul(answer_);
  }

  double density() const { return density_; }
  double entropy() const { return entropy_; }

 private:
  const Sight sight_;
  AdaptiveBlocks chooser_;
  const BlockMask window_;
  at::Tensor token_, before_, query_, key_, value_, answer_;
  double density_ = 0, entropy_ = 0;
};

// Adam, without decay.
class Optimizer {
 public:
  explicit Optimizer(const std::vector<Learner>& learners) {
    for (const auto& [parameter, rate] : learners) {
      parameters_.push_back(parameter);
      rates_.push_back(rate);
      first_.push_back(at::zeros_like(parameter));
      second_.push_back(at::zeros_like(parameter));
    }
  }

  void Step(const at::Tensor& loss) {
    const auto gradients = torch::autograd::grad({loss}, parameters_);
    const at::NoGradGuard no_grad;
    ++steps_;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      first_[i].mul_(0.9).add_(gradients[i], 0.1);
      second_[i].mul_(0.99).addcmul_(gradients[i], gradients[i], 0.01);
      const at::Tensor size = (second_[i] / (1 - std::pow(0.99, steps_))).sqrt_().add_(1e-8);
      parameters_[i].addcdiv_(first_[i], size, -rates_[i] / (1 - std::pow(0.9, steps_)));
    }
  }

 private:
  std::vector<at::Tensor> parameters_, first_, second_;
  std::vector<double> rates_;
  int steps_ = 0;
};

double Recall(Model& model, int64_t samples) {
  const at::NoGradGuard no_grad;
  Random random(g_seed + 1000);
  const Batch batch = Samples(random, samples);
  const at::Tensor asked = batch.answer.select(1, kBlocks);
  const at::Tensor right =
      model.Answer(batch, {}).select(1, kBlocks).argmax(-1).eq(asked).logical_and(asked >= 0);
  return right.sum().item<double>() / (asked >= 0).sum().item<double>();
}

// Trains for so many steps, or until nearly all is found, and says how many these were.
double Train(Sight sight, const char* name, int* steps) {
  const auto begin = std::chrono::steady_clock::now();
  Random random(g_seed);
  Model model(sight, g_seed);
  Optimizer optimizer(model.learners());
  int step = 0;
  for (; step < *steps; ++step) {
    const Batch batch = Samples(random, kBatch);
    const at::Tensor logits = model.Answer(batch, step);
    const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), batch.answer.flatten());
    optimizer.Step(loss);
    if (step % 25 == 0) {
      const double recall = Recall(model, 64);
      if (g_verbose) {
        std::printf("%s step %d loss %.3f entropy %.3f recall %.3f\n", name, step,
                    loss.item<double>(), model.entropy(), recall);
      }
      if (recall > 0.98) break;
    }
  }
  *steps = step;
  const double recall = Recall(model, 256);
  std::printf("%-22s recall %5.1f %%  density %.3f  entropy of the choice %.3f  %d steps  %.1f s\n",
              name, 100 * recall, model.density(), model.entropy(), step,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return recall;
}

TEST(NeedleTest, ChosenBlocksFindItWhereAWindowDoesNotAndOnlyBecauseTheChoiceLearns) {
  // The same bits wherever it runs, and no threads that wait for each other over a tiny model.
  at::set_num_threads(1);
  std::printf("seed %llu, steps of %d sequences of %d tokens, chance %.1f %%\n",
              static_cast<unsigned long long>(g_seed), static_cast<int>(kBatch),
              static_cast<int>(kTokens), 100.0 / kValues);
  int steps = g_steps;
  EXPECT_GT(Train(Sight::kChosen, "chosen blocks", &steps), 0.9);
  // The others get as many.
  EXPECT_LT(Train(Sight::kWindow, "window", &steps), 0.2);
  EXPECT_LT(Train(Sight::kDetached, "gates without gradient", &steps), 0.5);
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--seed=", 0) == 0) {
      ringmaster::attention::g_seed = std::strtoull(argv[i] + 7, nullptr, 10);
    } else if (argument.rfind("--steps=", 0) == 0) {
      ringmaster::attention::g_steps = std::atoi(argv[i] + 8);
    } else if (argument == "--verbose") {
      ringmaster::attention::g_verbose = true;
    } else {
      std::fprintf(stderr, "unknown argument %s; known: --seed=S --steps=N --verbose\n", argv[i]);
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
