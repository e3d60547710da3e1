// Gates of a block mask's pairs, in value and gradient.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "attention/block_sparse_attention.h"
#include "attention/passes.h"
#include "attention/reference_attention.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/flags.h"

namespace ringmaster::attention {
namespace {

using ::testing::HasSubstr;

CaseFlags g_flags = {.cases = 150};

// A mask of random pairs, each with a gate.
AttentionCase RandomGatedCase(uint64_t seed, const CaseLimits& limits) {
  AttentionCase problem = RandomBlockCase(seed, limits);
  problem.blocks->gated = true;
  at::manual_seed(seed);
  const at::ScalarType dtype = problem.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  problem.log_gates = at::randn({problem.q.size(0), problem.blocks->mask.Pairs()}, dtype);
  return problem;
}

ReferenceResult Oracle(const AttentionCase& problem) {
  return ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern(),
                            problem.log_gates);
}

// Of a query that sees one block alone the gate's gradient is zero, so that gradients of all gates
// may be; the random problems are such that it is about 1 for a query that sees more.
double GateError(const at::Tensor& x, const at::Tensor& reference) {
  if (reference.numel() == 0) return 0;
  const at::Tensor expected = reference.to(at::kDouble);
  return ((x.to(at::kDouble) - expected).abs() / (expected.abs() + 1)).max().item<double>();
}

TEST(BlockGatesPropertyTest, EqualTheDenseOracle) {
  std::printf("seeds %llu..%llu\n", static_cast<unsigned long long>(g_flags.seed),
              static_cast<unsigned long long>(g_flags.seed + g_flags.cases - 1));
  std::map<at::ScalarType, std::array<double, 6>> worst;
  for (int i = 0; i < g_flags.cases && !HasFailure(); ++i) {
    const uint64_t seed = g_flags.seed + i;
    const AttentionCase problem =
        RandomGatedCase(seed, {.max_tokens = 700, .head_dims = {5, 32, 64}});
    const ReferenceResult reference = Oracle(problem);
    const ReferenceResult model = SamePrecisionReference(
        problem.q, problem.k, problem.v, problem.dout, problem.pattern(),
        g_flags.device.is_cuda() ? Rounding::kFused : Rounding::kProbabilities, problem.log_gates);
    const CaseErrors same = ErrorsOf(model, reference);
    const at::ScalarType dtype = problem.q.scalar_type();
    const double same_gates = GateError(model.dlog_gates, reference.dlog_gates);
    for (const Path path : {Path::kAsCalled, Path::kLongSequence}) {
      SCOPED_TRACE("--seed=" + std::to_string(seed) + " --cases=1: " + problem.Describe());
      const AttentionResult result = RunRanks(problem, path, g_flags.device);
      EXPECT_FALSE(result.out.isnan().any().item<bool>());
      const CaseErrors errors = ErrorsOf(result, reference);
      auto& most = worst[problem.q.scalar_type()];
      for (size_t which = 0; which < errors.size(); ++which) {
        EXPECT_LE(errors[which], ErrorLimit(dtype, which, same[which])) << kTensors[which];
        most[which] = std::max(most[which], errors[which]);
      }
      ASSERT_EQ(result.dlog_gates.sizes(), problem.log_gates.sizes());
      EXPECT_EQ(result.dlog_gates.scalar_type(), problem.log_gates.scalar_type());
      const double gates = GateError(result.dlog_gates, reference.dlog_gates);
      EXPECT_LE(gates, dtype == at::kDouble ? 1e-10 : std::max(2e-5, 2 * same_gates));
      most[5] = std::max(most[5], gates);
    }
  }
  for (const auto& [dtype, most] : worst) {
    std::printf("%-9s worst", c10::toString(dtype));
    for (size_t which = 0; which < kTensors.size(); ++which) {
      std::printf("  %s %.1e", kTensors[which], most[which]);
    }
    std::printf("  dlog_gates %.1e\n", most[5]);
  }
}

// The oracle's own gradient of a gate, by differences of the loss.
TEST(BlockGatesTest, GradientsAreTheLimitsOfDifferences) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    AttentionCase problem = RandomGatedCase(
        seed, {.max_tokens = 330, .dtypes = {at::kDouble}, .ranks = {1}, .head_dims = {4}});
    SCOPED_TRACE(problem.Describe());
    problem.dout = at::where(problem.dout.isnan(), 0.0, problem.dout);
    const AttentionResult result = RunRanks(problem);
    const ReferenceResult reference = Oracle(problem);
    const auto loss = [&] { return (RunRanks(problem).out * problem.dout).sum().item<double>(); };
    constexpr double kStep = 1e-5;
    const auto check = [&](const at::Tensor& input, const at::Tensor& gradient, int64_t at) {
      const at::Tensor given = input.clone();
      at::Tensor element = input.view(-1)[at];
      element.add_(kStep);
      const double above = loss();
      element.sub_(2 * kStep);
      const double below = loss();
      input.copy_(given);
      EXPECT_NEAR(gradient.reshape(-1)[at].item<double>(), (above - below) / (2 * kStep), 2e-7);
    };
    for (int64_t gate = 0; gate < problem.log_gates.numel(); ++gate) {
      check(problem.log_gates, result.dlog_gates, gate);
    }
    problem.q = problem.q.contiguous();
    problem.k = problem.k.contiguous();
    problem.v = problem.v.contiguous();
    for (int64_t at = 0; at < 3; ++at) {
      check(problem.q, result.dq, at * problem.q.numel() / 3);
      check(problem.k, result.dk, at * problem.k.numel() / 3);
      check(problem.v, result.dv, at * problem.v.numel() / 3);
    }
    EXPECT_LT(GateError(result.dlog_gates, reference.dlog_gates), 1e-11);
  }
}

// Gates of one change nothing, and gates that are all alike change the denominators only.
TEST(BlockGatesTest, GatesThatAreAlikeShiftTheDenominators) {
  AttentionCase problem = RandomGatedCase(3, {.min_tokens = 600, .max_tokens = 700});
  AttentionCase plain = problem;
  plain.blocks->gated = false;
  plain.log_gates.reset();
  const ReferenceResult without =
      ReferenceAttention(plain.q, plain.k, plain.v, {}, plain.pattern());
  for (const double shift : {0.0, -2.5}) {
    problem.log_gates.fill_(shift);
    const ReferenceResult gated = Oracle(problem);
    EXPECT_LT(RelativeError(gated.out, without.out), 1e-13);
    EXPECT_LT(RelativeError(gated.lse, without.lse + shift), 1e-13);
  }
}

TEST(BlockGatesTest, WhatDoesNotFitIsRefused) {
  AttentionCase problem = RandomGatedCase(3, {.min_tokens = 300, .max_tokens = 300, .ranks = {1}});
  const auto message = [&](bool gated, const at::Tensor& log_gates) -> std::string {
    problem.blocks->gated = gated;
    try {
      BlockSparseAttention(problem.q, problem.k, problem.v, *problem.blocks, log_gates);
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  EXPECT_EQ(message(true, problem.log_gates), "");
  EXPECT_THAT(message(true, {}), HasSubstr("gated and log_gates are not given"));
  EXPECT_THAT(message(false, problem.log_gates), HasSubstr("not gated and log_gates are given"));
  EXPECT_THAT(message(true, problem.log_gates.slice(1, 1)), HasSubstr("log_gates must be ["));
  EXPECT_THAT(message(true, problem.log_gates.to(at::kLong)), HasSubstr("Long"));
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunTestsOfCases(argc, argv, &ringmaster::attention::g_flags);
}
