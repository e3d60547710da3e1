// Which blocks are chosen, and what of it is differentiable. needle_test.cc shows that it learns.
#include "attention/adaptive_blocks.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "attention/dilated_attention.h"
#include "attention/reference_attention.h"

namespace ringmaster::attention {
namespace {

using ::testing::HasSubstr;

struct Inputs {
  at::Tensor q, k, v;
};

Inputs Randoms(int64_t tokens, at::ScalarType dtype = at::kDouble) {
  at::manual_seed(5);
  const auto randn = [&](int64_t heads) { return at::randn({2, tokens, heads, 8}).to(dtype); };
  return {randn(4), randn(2), randn(2)};
}

// 4 heads of 8, 2 of them of keys.
AdaptiveBlocksOptions Options(int64_t chosen, bool gated = true, bool causal = true) {
  return {.heads = 4,
          .kv_heads = 2,
          .head_dim = 8,
          .score_dim = 4,
          .block_size = 64,
          .chosen = chosen,
          .causal = causal,
          .gated = gated};
}

AdaptiveBlocks Chooser(const AdaptiveBlocksOptions& options, at::ScalarType dtype = at::kDouble) {
  AdaptiveBlocks chooser = *AdaptiveBlocks::Create(options, 3, dtype);
  // So that tokens weigh differently within their blocks.
  const at::NoGradGuard no_grad;
  at::manual_seed(6);
  chooser.parameters().back().normal_();
  return chooser;
}

TEST(AdaptiveBlocksTest, AllBlocksWithoutGatesAreDenseAttention) {
  const Inputs x = Randoms(400);
  for (const bool causal : {true, false}) {
    const BlockChoice choice = Chooser(Options(7, /*gated=*/false, causal)).Choose(x.q, x.k);
    EXPECT_DOUBLE_EQ(choice.density, 1);
    const AttentionOutput got = AttendToChoice(x.q, x.k, x.v, choice);
    const AttentionOutput dense =
        DilatedAttention(x.q, x.k, x.v, {.branches = {{400, 1}}, .causal = causal});
    EXPECT_LT(RelativeError(got.out, dense.out), 1e-13);
    EXPECT_LT(RelativeError(got.lse, dense.lse), 1e-13);
  }
}

TEST(AdaptiveBlocksTest, EachBlockSeesItselfTheSinksAndAsManyAsItMayChoose) {
  const Inputs x = Randoms(64 * 9 + 1);
  for (const bool causal : {true, false}) {
    for (const int64_t sinks : {0, 1, 2}) {
      AdaptiveBlocksOptions options = Options(2, /*gated=*/true, causal);
      options.sinks = sinks;
      const BlockChoice choice = Chooser(options).Choose(x.q, x.k);
      const BlockMask& mask = choice.options.mask;
      ASSERT_EQ(mask.shape().heads, 2 * 4);
      EXPECT_EQ(choice.log_gates.size(1), mask.Pairs());
      EXPECT_GT(choice.entropy, 0.1);
      EXPECT_LT(choice.entropy, 1);
      bool differ = false;
      for (int64_t head = 0; head < 8; ++head) {
        for (int64_t query = 0; query < 10; ++query) {
          int64_t others = 0, candidates = 0;
          for (int64_t key = 0; key < 10; ++key) {
            const bool visible = mask.visible(head, query, key);
            EXPECT_EQ(visible, mask.visible(head / 2 * 2, query, key));
            differ |= visible != mask.visible(0, query, key);
            if (key == query || (key < sinks && (!causal || key < query))) {
              EXPECT_TRUE(visible);
            } else {
              others += visible ? 1 : 0;
              candidates += key >= sinks && (!causal || key < query) ? 1 : 0;
            }
          }
          EXPECT_EQ(others, std::min<int64_t>(2, candidates)) << query;
        }
      }
      EXPECT_TRUE(differ) << "the sequences and heads choose alike";
    }
  }
}

// What comes at a token changes neither what was chosen before it nor any bit of the output.
TEST(AdaptiveBlocksTest, NothingLeaksFromTheFuture) {
  constexpr int64_t kTokens = 64 * 8 + 5;
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const Inputs x = Randoms(kTokens, dtype);
    for (const bool gated : {true, false}) {
      const AdaptiveBlocks chooser =
          Chooser(Options(2, gated), dtype == at::kDouble ? at::kDouble : at::kFloat);
      const BlockChoice before = chooser.Choose(x.q, x.k);
      const AttentionOutput out = AttendToChoice(x.q, x.k, x.v, before);
      int changes = 0;
      for (const int64_t token : {1, 63, 64, 65, 127, 128, 200, 320, 511, 512, 516}) {
        const Inputs changed{x.q.clone(), x.k.clone(), x.v.clone()};
        for (const at::Tensor& input : {changed.q, changed.k, changed.v}) {
          input.slice(1, token).normal_(0, 3);
        }
        const BlockChoice after = chooser.Choose(changed.q, changed.k);
        for (int64_t head = 0; head < 8; ++head) {
          for (int64_t query = 0; query < 9; ++query) {
            const bool same =
                before.options.mask.Row(head, query) == after.options.mask.Row(head, query);
            EXPECT_TRUE(same || query * 64 >= token) << token << " " << query;
            changes += same ? 0 : 1;
          }
        }
        const AttentionOutput got = AttendToChoice(changed.q, changed.k, changed.v, after);
        EXPECT_TRUE(got.out.slice(1, 0, token).equal(out.out.slice(1, 0, token))) << token;
        EXPECT_TRUE(got.lse.slice(1, 0, token).equal(out.lse.slice(1, 0, token))) << token;
        EXPECT_FALSE(got.out.slice(1, token).equal(out.out.slice(1, token))) << token;
      }
      EXPECT_GT(changes, 20) << "choices do not look at the content";
    }
  }
}

TEST(AdaptiveBlocksTest, EqualScoresChooseTheFirstBlocksAndNoiseFollowsItsSeed) {
  const Inputs x = Randoms(64 * 8);
  AdaptiveBlocks chooser = Chooser(Options(2));
  const BlockMask once = chooser.Choose(x.q, x.k).options.mask;
  EXPECT_EQ(once, chooser.Choose(x.q, x.k).options.mask);
  const BlockMask noisy = chooser.Choose(x.q, x.k, 7).options.mask;
  EXPECT_EQ(noisy, chooser.Choose(x.q, x.k, 7).options.mask);
  EXPECT_FALSE(noisy == chooser.Choose(x.q, x.k, 8).options.mask);
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : chooser.parameters()) parameter.zero_();
  }
  const BlockChoice choice = chooser.Choose(x.q, x.k);
  EXPECT_NEAR(choice.entropy, 1, 1e-12);
  for (int64_t query = 3; query < 8; ++query) {
    // The sink, the first two others, and itself.
    EXPECT_EQ(choice.options.mask.Row(0, query)[0], 0b111u | uint64_t{1} << query);
  }
}

// With the choice as it is, the loss is smooth in all parameters and inputs.
TEST(AdaptiveBlocksTest, GradientsAreTheLimitsOfDifferences) {
  const Inputs x = Randoms(64 * 5 + 9);
  const AdaptiveBlocks chooser = Chooser(Options(2));
  std::vector<at::Tensor> leaves = chooser.parameters();
  for (const at::Tensor& input : {x.q, x.k, x.v}) {
    leaves.push_back(input.set_requires_grad(true));
  }
  at::manual_seed(8);
  const at::Tensor dout = at::randn_like(x.q);
  const BlockMask mask = chooser.Choose(x.q, x.k).options.mask;
  const auto loss = [&] {
    const BlockChoice choice = chooser.Choose(x.q, x.k);
    EXPECT_EQ(choice.options.mask, mask);
    return (AttendToChoice(x.q, x.k, x.v, choice).out * dout).sum();
  };
  const auto gradients = torch::autograd::grad({loss()}, leaves);
  const at::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  for (size_t which = 0; which < leaves.size(); ++which) {
    EXPECT_GT(gradients[which].abs().max().item<double>(), 1e-3) << which;
    const at::Tensor flat = leaves[which].view(-1);
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t at = i * flat.numel() / 4 + i;
      const double given = flat[at].item<double>();
      flat[at].fill_(given + kStep);
      const double above = loss().item<double>();
      flat[at].fill_(given - kStep);
      const double below = loss().item<double>();
      flat[at].fill_(given);
      EXPECT_NEAR(gradients[which].reshape(-1)[at].item<double>(), (above - below) / (2 * kStep),
                  1e-6)
          << which << " " << at;
    }
  }
}

TEST(AdaptiveBlocksTest, WhatDoesNotFitIsRefused) {
  const auto message = [](const AdaptiveBlocksOptions& options) {
    return std::string(options.Validate().message());
  };
  EXPECT_THAT(message({.heads = 3, .kv_heads = 2}), HasSubstr("heads is 3"));
  EXPECT_THAT(message({.score_dim = 0}), HasSubstr("score_dim is 0"));
  EXPECT_THAT(message({.block_size = 32}), HasSubstr("block_size"));
  EXPECT_THAT(message({.chosen = 0, .gated = false}),
              HasSubstr("chosen is 0; it must be at least 1"));
  EXPECT_THAT(message({.chosen = 1}), HasSubstr("at least 2"));
  EXPECT_THAT(message({.sinks = -1}), HasSubstr("sinks is -1"));
  EXPECT_THAT(std::string(AdaptiveBlocks::Create({}, 1, at::kHalf).status().message()),
              HasSubstr("Half"));
  const Inputs x = Randoms(100);
  EXPECT_THROW(Chooser(Options(2)).Choose(x.k, x.k), c10::ValueError);
  EXPECT_THROW(Chooser(Options(2)).Choose(x.q, x.k.slice(1, 1)), c10::ValueError);
}

}  // namespace
}  // namespace ringmaster::attention
