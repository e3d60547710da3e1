#include "attention/dilated_attention.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "attention/plan/plan.h"
#include "tests/attention/attention_case.h"

namespace ringmaster::attention {
namespace {

using ::testing::HasSubstr;

// Two rates, so that heads differ, and rows that no branch covers.
DilatedAttentionOptions SomeOptions() { return {.branches = {{8, 2}, {30, 3}, {13, 5}}}; }

struct Inputs {
  at::Tensor q, k, v;
};

Inputs Randoms(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t size,
               at::ScalarType dtype = at::kDouble) {
  at::manual_seed(11);
  return {at::randn({batch, tokens, heads, size}).to(dtype),
          at::randn({batch, tokens, kv_heads, size}).to(dtype),
          at::randn({batch, tokens, kv_heads, size}).to(dtype)};
}

// Of one rank.
AttentionCase CaseOf(const Inputs& x, const DilatedAttentionOptions& options) {
  AttentionCase problem;
  problem.q = x.q, problem.k = x.k, problem.v = x.v;
  problem.dout = at::randn_like(x.q);
  problem.options = options;
  problem.map = ShardMap::Contiguous(x.q.size(1), 1, 1);
  return problem;
}

AttentionOutput Attend(const Inputs& x, const DilatedAttentionOptions& options) {
  return DilatedAttention(x.q, x.k, x.v, options);
}

TEST(DilatedAttentionTest, NothingLeaksFromTheFuture) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const Inputs x = Randoms(1, 300, 4, 2, 8, dtype);
    const AttentionOutput before = Attend(x, {.branches = {{64, 1}, {300, 3}}});
    for (int64_t token : {1, 63, 64, 150, 299}) {
      const Inputs changed{x.q.clone(), x.k.clone(), x.v.clone()};
      changed.k.slice(1, token).normal_();
      changed.v.slice(1, token).normal_();
      const AttentionOutput after = Attend(changed, {.branches = {{64, 1}, {300, 3}}});
      EXPECT_TRUE(after.out.slice(1, 0, token).equal(before.out.slice(1, 0, token))) << token;
      EXPECT_TRUE(after.lse.slice(1, 0, token).equal(before.lse.slice(1, 0, token))) << token;
      EXPECT_FALSE(after.out.slice(1, token).equal(before.out.slice(1, token))) << token;
    }
  }
}

TEST(DilatedAttentionTest, IsLinearInV) {
  const Inputs x = Randoms(1, 60, 4, 4, 8);
  const at::Tensor other = at::randn_like(x.v);
  const at::Tensor sum = Attend({x.q, x.k, 2 * x.v - 3 * other}, SomeOptions()).out;
  const at::Tensor parts =
      2 * Attend(x, SomeOptions()).out - 3 * Attend({x.q, x.k, other}, SomeOptions()).out;
  EXPECT_LT((sum - parts).abs().max().item<double>(), 1e-13);
}

TEST(DilatedAttentionTest, BatchEntriesDoNotMeet) {
  const Inputs x = Randoms(3, 300, 4, 2, 8, at::kFloat);
  const AttentionOutput together = Attend(x, SomeOptions());
  for (int64_t b = 0; b < 3; ++b) {
    const AttentionOutput alone =
        Attend({x.q.narrow(0, b, 1), x.k.narrow(0, b, 1), x.v.narrow(0, b, 1)}, SomeOptions());
    EXPECT_TRUE(alone.out.equal(together.out.narrow(0, b, 1)));
    EXPECT_TRUE(alone.lse.equal(together.lse.narrow(0, b, 1)));
  }
}

TEST(DilatedAttentionTest, TheOrderOfBranchesDoesNotMatter) {
  const Inputs x = Randoms(1, 60, 4, 2, 8);
  const AttentionOutput one = Attend(x, {.branches = {{8, 2}, {30, 3}, {13, 5}}});
  const AttentionOutput two = Attend(x, {.branches = {{13, 5}, {8, 2}, {30, 3}}});
  EXPECT_LT(RelativeError(two.out, one.out), 1e-14);
  EXPECT_LT(RelativeError(two.lse, one.lse), 1e-14);
}

TEST(DilatedAttentionTest, ABranchGivenTwiceCountsTwice) {
  const Inputs x = Randoms(1, 60, 4, 2, 8);
  const AttentionOutput once = Attend(x, {.branches = {{60, 2}}});
  // Equal only after clamping to the 60 tokens.
  const AttentionOutput twice = Attend(x, {.branches = {{60, 2}, {int64_t{1} << 50, 2}}});
  EXPECT_LT(RelativeError(twice.out, once.out), 1e-14);
  EXPECT_LT(RelativeError(twice.lse, once.lse + std::log(2.0)), 1e-14);
}

TEST(DilatedAttentionTest, OneFullBranchIsPlainAttention) {
  const Inputs x = Randoms(2, 40, 3, 3, 16);
  const at::Tensor out = Attend(x, {.branches = {{1000, 1}}}).out;
  const at::Tensor plain =
      at::scaled_dot_product_attention(x.q.transpose(1, 2), x.k.transpose(1, 2),
                                       x.v.transpose(1, 2), {}, 0.0, true)
          .transpose(1, 2);
  EXPECT_LT(RelativeError(out, plain), 1e-13);
}

TEST(DilatedAttentionTest, UncoveredPositionsGiveZeroAndIgnoreTheirGradient) {
  const Inputs x = Randoms(1, 12, 2, 2, 4, at::kFloat);
  for (const at::Tensor& input : {x.q, x.k, x.v}) input.set_requires_grad(true);
  // Head 0 selects even tokens, head 1 odd ones.
  const AttentionOutput output = Attend(x, {.branches = {{4, 2}}});
  const at::Tensor uncovered =
      (at::arange(12).unsqueeze(1) + at::arange(2)).remainder(2).to(at::kBool).unsqueeze(0);
  EXPECT_TRUE(output.lse.isneginf().equal(uncovered));
  EXPECT_EQ(output.out.masked_select(uncovered.unsqueeze(-1)).abs().sum().item<double>(), 0);
  const at::Tensor dout = at::ones_like(output.out);
  const auto with_ones =
      torch::autograd::grad({output.out}, {x.q, x.k, x.v}, {dout}, /*retain_graph=*/true);
  const at::Tensor poisoned = dout.masked_fill(uncovered.unsqueeze(-1), std::nan(""));
  const auto with_nan = torch::autograd::grad({output.out}, {x.q, x.k, x.v}, {poisoned});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(with_nan[i].equal(with_ones[i]));
  EXPECT_FALSE(output.lse.requires_grad());
}

// Each as a sequence of its own, gradients too.
TEST(DilatedAttentionTest, DocumentsAreSequencesOfTheirOwn) {
  const Documents documents = {0, 1, 18, 25, 61, 62};
  for (const MixGradient mix_gradient : {MixGradient::kExact, MixGradient::kDetached}) {
    for (const int ranks : {1, 3}) {
      const Inputs x = Randoms(2, 90, 4, 2, 8);
      AttentionCase packed = CaseOf(x, SomeOptions());
      packed.options.branches.push_back({20, 1});
      packed.options.mix_gradient = mix_gradient;
      AttentionCase one = packed;
      packed.options.documents = documents;
      packed.map = ShardMap::Contiguous(90, ranks, 1);
      const AttentionResult result = RunRanks(packed);
      for (size_t i = 0; i < documents.size(); ++i) {
        const int64_t begin = documents[i];
        const int64_t end = i + 1 < documents.size() ? documents[i + 1] : 90;
        const auto part = [&](const at::Tensor& x) { return x.slice(1, begin, end); };
        one.q = part(x.q), one.k = part(x.k), one.v = part(x.v), one.dout = part(packed.dout);
        one.map = ShardMap::Contiguous(end - begin, 1, 1);
        const AttentionResult alone = RunRanks(one);
        EXPECT_LT(RelativeError(part(result.out), alone.out), 1e-13);
        EXPECT_LT(RelativeError(part(result.lse), alone.lse), 1e-13);
        EXPECT_LT((part(result.dq) - alone.dq).abs().max().item<double>(), 1e-13);
        EXPECT_LT((part(result.dk) - alone.dk).abs().max().item<double>(), 1e-13);
        EXPECT_LT((part(result.dv) - alone.dv).abs().max().item<double>(), 1e-13);
      }
    }
  }
}

// What is not finite stays in its document.
TEST(DilatedAttentionTest, NothingLeaksIntoAnotherDocument) {
  const Inputs x = Randoms(1, 300, 4, 2, 8, at::kFloat);
  const DilatedAttentionOptions options{
      .branches = {{64, 1}, {300, 3}}, .causal = false, .documents = {0, 100, 170}};
  const AttentionOutput before = Attend(x, options);
  for (const at::Tensor& input : {x.q, x.k, x.v}) input.slice(1, 100, 170).fill_(std::nan(""));
  const AttentionOutput after = Attend(x, options);
  for (const auto& [begin, end] : {std::pair{0, 100}, {170, 300}}) {
    EXPECT_TRUE(after.out.slice(1, begin, end).equal(before.out.slice(1, begin, end)));
    EXPECT_TRUE(after.lse.slice(1, begin, end).equal(before.lse.slice(1, begin, end)));
  }
  EXPECT_TRUE(after.out.slice(1, 100, 170).isnan().all().item<bool>());
}

// Every segment, or document, has one token: nothing is left for q and k, not even rounding.
TEST(DilatedAttentionTest, QueriesThatSeeOnlyThemselvesGiveTheirGradientToVAlone) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (int ranks : {1, 3}) {
      AttentionCase problem = CaseOf(Randoms(1, 300, 2, 2, 16, dtype), {});
      problem.map = ShardMap::Contiguous(300, ranks, 1);
      Documents tokens(300);
      std::iota(tokens.begin(), tokens.end(), 0);
      for (const DilatedAttentionOptions& options :
           {DilatedAttentionOptions{.branches = {{1, 1}, {1, 1}, {1, 1}}},
            DilatedAttentionOptions{.branches = {{64, 1}}, .documents = tokens}}) {
        problem.options = options;
        const AttentionResult result = RunRanks(problem);
        EXPECT_EQ(result.dq.count_nonzero().item<int64_t>(), 0);
        EXPECT_EQ(result.dk.count_nonzero().item<int64_t>(), 0);
        EXPECT_TRUE(result.dv.equal(problem.dout));
      }
    }
  }
}

// Central differences of sum(out * dout) in fp64, element by element.
TEST(DilatedAttentionTest, GradientsAreThoseOfFiniteDifferences) {
  at::set_num_threads(1);  // hundreds of tiny calls
  for (bool causal : {true, false}) {
    DilatedAttentionOptions options = SomeOptions();
    options.branches = {{4, 1}, {7, 2}, {7, 2}};
    options.causal = causal;
    const Inputs x = Randoms(1, 9, 2, 1, 3);
    const at::Tensor dout = at::randn_like(x.q);
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& input : {x.q, x.k, x.v})
      leaves.push_back(input.clone().set_requires_grad(true));
    const auto gradients = torch::autograd::grad(
        {DilatedAttention(leaves[0], leaves[1], leaves[2], options).out}, leaves, {dout});
    const at::Tensor inputs[] = {x.q, x.k, x.v};
    const double step = 1e-5;
    for (int which = 0; which < 3; ++which) {
      double* data = inputs[which].data_ptr<double>();
      const at::Tensor gradient = gradients[which].contiguous();
      for (int64_t i = 0; i < inputs[which].numel(); ++i) {
        const double value = data[i];
        data[i] = value + step;
        const double above = (Attend(x, options).out * dout).sum().item<double>();
        data[i] = value - step;
        const double below = (Attend(x, options).out * dout).sum().item<double>();
        data[i] = value;
        EXPECT_NEAR(gradient.data_ptr<double>()[i], (above - below) / (2 * step), 1e-8)
            << "input " << which << " element " << i << (causal ? " causal" : " full");
      }
    }
  }
}

TEST(DilatedAttentionTest, TheDetachedGradientDiffersInQAndKOnly) {
  AttentionCase problem = CaseOf(Randoms(1, 40, 2, 2, 4), {.branches = {{8, 1}, {40, 2}}});
  const AttentionResult exact = RunRanks(problem);
  problem.options.mix_gradient = MixGradient::kDetached;
  const AttentionResult detached = RunRanks(problem);
  EXPECT_LT(RelativeError(detached.dv, exact.dv), 1e-13);
  EXPECT_GT(RelativeError(detached.dq, exact.dq), 1e-2);
  EXPECT_GT(RelativeError(detached.dk, exact.dk), 1e-2);
}

TEST(DilatedAttentionTest, TheSameInputsGiveTheSameBits) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    AttentionCase problem =
        CaseOf(Randoms(1, 700, 4, 2, 16, dtype), {.branches = {{128, 1}, {512, 3}, {1000, 7}}});
    for (int ranks : {1, 3}) {
      problem.map = ShardMap::Contiguous(700, ranks, 1);
      const AttentionResult first = RunRanks(problem);
      for (int repeat = 0; repeat < 5; ++repeat) {
        const AttentionResult again = RunRanks(problem);
        EXPECT_TRUE(again.out.equal(first.out) && again.lse.equal(first.lse) &&
                    again.dq.equal(first.dq) && again.dk.equal(first.dk) &&
                    again.dv.equal(first.dv))
            << ranks << " ranks";
      }
    }
  }
}

// Swapped for tokens, a head is computed as on a ring of one, on ranks with and without tokens and
// heads.
TEST(DilatedAttentionTest, SwappedHeadsHaveTheBitsOfOneRank) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const OffsetMode mode : {OffsetMode::kPaper, OffsetMode::kTorchscale}) {
      AttentionCase problem =
          CaseOf(Randoms(2, 301, 6, 3, 16, dtype),
                 {.branches = {{64, 1}, {250, 3}, {1000, 7}}, .offset_mode = mode});
      const AttentionResult whole = RunRanks(problem);
      problem.strategy = Strategy::kHeads;
      for (const ShardMap& map : {ShardMap::Contiguous(301, 2, 1), ShardMap::Zigzag(301, 3, 1),
                                  *ShardMap::FromRanges(301, {{}, {{5, 9}}, {{0, 5}, {9, 301}}}),
                                  ShardMap::Contiguous(301, 5, 1)}) {
        problem.map = map;
        const AttentionResult shared = RunRanks(problem);
        EXPECT_TRUE(shared.out.equal(whole.out) && shared.lse.equal(whole.lse) &&
                    shared.dq.equal(whole.dq) && shared.dk.equal(whole.dk) &&
                    shared.dv.equal(whole.dv))
            << problem.Describe();
        EXPECT_EQ(shared.sent_bytes, PlannedTraffic(problem).sent_bytes);
      }
    }
  }
}

TEST(DilatedAttentionTest, RefusesWhatDoesNotFitAndNamesIt) {
  const Inputs x = Randoms(1, 6, 4, 2, 4);
  const auto error = [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const DilatedAttentionOptions& options) -> std::string {
    try {
      DilatedAttention(q, k, v, options);
    } catch (const c10::ValueError& e) {
      return e.what_without_backtrace();
    }
    return "no error";
  };
  const DilatedAttentionOptions options{.branches = {{4, 1}}};
  EXPECT_THAT(error(x.q, x.k, at::Tensor(), options), HasSubstr("must all be given"));
  EXPECT_THAT(error(x.q[0], x.k, x.v, options), HasSubstr("[B, N, H, D]"));
  EXPECT_THAT(error(x.q.to(at::kFloat), x.k, x.v, options), HasSubstr("one dtype"));
  EXPECT_THAT(error(x.q.to(at::kLong), x.k.to(at::kLong), x.v.to(at::kLong), options),
              HasSubstr("bf16"));
  EXPECT_THAT(error(x.q, x.k, x.v.narrow(2, 0, 1), options),
              HasSubstr("k and v must have one shape"));
  EXPECT_THAT(error(x.q, x.k.narrow(1, 0, 5), x.v.narrow(1, 0, 5), options),
              HasSubstr("must agree"));
  EXPECT_THAT(error(x.q.narrow(2, 0, 3), x.k, x.v, options), HasSubstr("not a multiple"));
  EXPECT_THAT(error(x.q, x.k, x.v, {.branches = {{4, 5}}}),
              HasSubstr("dilation_rate of branch 0 is 5"));
  EXPECT_THROW(DilatedAttention(x.q, x.k, x.v, options, ShardMap::Contiguous(6, 2, 1), nullptr),
               c10::ValueError);
  EXPECT_THROW(DilatedAttention(x.q, x.k, x.v, options, ShardMap::Contiguous(7, 1, 1), nullptr),
               c10::ValueError);
}

TEST(DilatedAttentionTest, ASecondDerivativeIsRefused) {
  const at::Tensor q = at::randn({1, 4, 1, 2}).set_requires_grad(true);
  const AttentionOutput output = DilatedAttention(q, q, q, {.branches = {{4, 1}}});
  EXPECT_THROW(torch::autograd::grad({output.out}, {q}, {at::ones_like(output.out)}, true,
                                     /*create_graph=*/true),
               c10::Error);
}

}  // namespace
}  // namespace ringmaster::attention
