// Dropout of attention's probabilities, in value and gradient; flags: tests/attention/flags.h.
#include "attention/dropout.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <string>

#include "attention/dilated_attention.h"
#include "attention/kernels/philox.h"
#include "attention/passes.h"
#include "attention/reference_attention.h"
#include "attention/stock/dropout_mask.h"
#include "attention/tiles/tile_ops.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/flags.h"
#include "tests/attention/random.h"

namespace ringmaster::attention {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

CaseFlags g_flags = {.cases = 150};

// The authors' own (Random123, kat_vectors).
TEST(PhiloxTest, GivesThePublishedAnswers) {
  const auto words = [](kernels::PhiloxWords counter, uint64_t key) {
    const auto [x] = kernels::Philox(counter, key);
    return std::vector<uint32_t>(x, x + 4);
  };
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(words({{0, 0, 0, 0}}, 0),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(words({{kOnes, kOnes, kOnes, kOnes}}, ~uint64_t{0}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

// Branches, masks and masks with gates in turn.
AttentionCase DropoutCase(uint64_t seed) {
  AttentionCase problem = seed % 3 == 0 ? RandomBlockCase(seed, {.max_tokens = 330})
                                        : RandomCase(seed, {.max_tokens = 120});
  Random random(~seed);
  if (problem.blocks.has_value() && random.OneIn(2)) {
    problem.blocks->gated = true;
    at::manual_seed(static_cast<int64_t>(seed));
    problem.log_gates = at::randn({problem.q.size(0), problem.blocks->mask.Pairs()});
  }
  const bool gated = problem.log_gates.defined();
  if (seed % 4 < 2 && problem.map.ranks() > 1 && !gated) problem.strategy = Strategy::kHeads;
  problem.dropout.probability = random.Of<double>({1e-3, 0.1, 0.5, 0.9});
  problem.dropout.call = random.Between(0, int64_t{1} << 40);
  for (int64_t i = 0; i < problem.q.size(0); ++i) {
    problem.dropout.seeds.push_back(static_cast<uint64_t>(random.Between(0, int64_t{1} << 62)));
  }
  return problem;
}

ReferenceResult Oracle(const AttentionCase& x) {
  return ReferenceAttention(x.q, x.k, x.v, x.dout, x.pattern(), x.log_gates, x.dropout);
}

TEST(DropoutPropertyTest, EqualsTheDenseOracle) {
  std::printf("seeds %llu..%llu\n", static_cast<unsigned long long>(g_flags.seed),
              static_cast<unsigned long long>(g_flags.seed + g_flags.cases - 1));
  for (int i = 0; i < g_flags.cases && !HasFailure(); ++i) {
    const uint64_t seed = g_flags.seed + i;
    const AttentionCase problem = DropoutCase(seed);
    SCOPED_TRACE("--seed=" + std::to_string(seed) + " --cases=1: " + problem.Describe() +
                 " dropout " + std::to_string(problem.dropout.probability));
    const ReferenceResult reference = Oracle(problem);
    const CaseErrors same = ErrorsOf(
        SamePrecisionReference(problem.q, problem.k, problem.v, problem.dout, problem.pattern(),
                               Rounding::kProbabilities, problem.log_gates, problem.dropout),
        reference);
    for (const Path path : {Path::kAsCalled, Path::kLongSequence}) {
      AttentionResult result = RunRanks(problem, path, g_flags.device);
      EXPECT_TRUE(result.lse.isneginf().equal(reference.lse.isneginf()));
      EXPECT_EQ(result.sent_bytes, PlannedTraffic(problem).sent_bytes);
      const CaseErrors errors = ErrorsOf(result, reference);
      for (size_t which = 0; which < errors.size(); ++which) {
        EXPECT_LE(errors[which], ErrorLimit(problem.q.scalar_type(), which, same[which]))
            << kTensors[which];
      }
      if (problem.log_gates.defined()) {
        const at::Tensor gates = reference.dlog_gates;
        EXPECT_TRUE(
            ((result.dlog_gates - gates).abs() <= 1e-4 * (gates.abs() + 1)).all().item<bool>());
      }
    }
  }
}

// The oracle's own gradients.
TEST(DropoutTest, GradientsAreTheLimitsOfDifferences) {
  at::set_num_threads(1);  // hundreds of tiny calls
  for (const bool causal : {true, false}) {
    AttentionCase problem;
    at::manual_seed(5);
    const auto randn = [](int64_t heads) { return at::randn({1, 9, heads, 3}, at::kDouble); };
    problem.q = randn(2), problem.k = randn(1), problem.v = randn(1), problem.dout = randn(2);
    problem.options = {.branches = {{9, 1}, {9, 1}, {7, 2}}, .causal = causal};
    problem.dropout = {.probability = 0.4, .seeds = {17}};
    const ReferenceResult reference = Oracle(problem);
    const auto loss = [&] {
      const at::Tensor out = ReferenceAttention(problem.q, problem.k, problem.v, {},
                                                problem.pattern(), {}, problem.dropout)
                                 .out;
      return (out * problem.dout).sum().item<double>();
    };
    constexpr double kStep = 1e-5;
    for (const auto& [input, gradient] : {std::pair{problem.q, reference.dq},
                                          {problem.k, reference.dk},
                                          {problem.v, reference.dv}}) {
      for (int64_t i = 0; i < input.numel(); ++i) {
        at::Tensor element = input.view(-1)[i];
        element.add_(kStep);
        const double above = loss();
        element.sub_(2 * kStep);
        const double below = loss();
        element.add_(kStep);
        EXPECT_NEAR(gradient.view(-1)[i].item<double>(), (above - below) / (2 * kStep), 1e-8);
      }
    }
  }
}

constexpr int64_t kTokens = 64;

// How often probabilities are taken: [B, queries, heads, keys], by equal probabilities and values
// that tell keys apart.
at::Tensor Taken(const AttentionDropout& dropout, const std::vector<Branch>& branches,
                 const ShardMap& map = ShardMap::Contiguous(kTokens, 1, 1)) {
  AttentionCase problem;
  const auto batch = static_cast<int64_t>(dropout.seeds.size());
  problem.q = at::zeros({batch, kTokens, 8, kTokens}, at::kDouble);
  problem.k = at::zeros({batch, kTokens, 1, kTokens}, at::kDouble);
  problem.v = at::eye(kTokens, at::kDouble).view({1, kTokens, 1, kTokens}).repeat({batch, 1, 1, 1});
  problem.dout = at::ones_like(problem.q);
  problem.options = {.branches = branches, .causal = false};
  problem.map = map;
  problem.dropout = dropout;
  return RunRanks(problem).out * static_cast<double>(kTokens);
}

double Share(const at::Tensor& which) { return which.to(at::kDouble).mean().item<double>(); }

// Within five standard deviations of what a fair draw of `of` numbers gives.
void ExpectShare(const at::Tensor& which, double expected) {
  const double deviation =
      std::sqrt(expected * (1 - expected) / static_cast<double>(which.numel()));
  EXPECT_NEAR(Share(which), expected, 5 * deviation);
}

TEST(DropoutTest, KeepsTheShareThatItSays) {
  for (const double probability : {0.1, 0.5, 0.75}) {
    const at::Tensor taken = Taken({.probability = probability, .seeds = {1, 2}}, {{kTokens, 1}});
    const at::Tensor kept = taken.gt(0);
    ExpectShare(kept, 1 - probability);
    for (int64_t head = 0; head < 8; ++head) ExpectShare(kept.select(2, head), 1 - probability);
    for (int64_t token = 0; token < kTokens; ++token) {
      ExpectShare(kept.select(1, token), 1 - probability);
      ExpectShare(kept.select(3, token), 1 - probability);
    }
    EXPECT_LT((taken.masked_select(kept) - 1 / (1 - probability)).abs().max().item<double>(),
              1e-12);
  }
}

// Sequences, heads, calls and branches: two of them agree as often as chance has it.
TEST(DropoutTest, WhatIsDrawnApartIsIndependent) {
  const AttentionDropout dropout = {.probability = 0.3, .seeds = {1, 2}};
  const std::vector<Branch> one = {{kTokens, 1}};
  const at::Tensor kept = Taken(dropout, one).gt(0);
  const double agree = 0.3 * 0.3 + 0.7 * 0.7;
  ExpectShare(kept[0].eq(kept[1]), agree);
  ExpectShare(kept.select(2, 0).eq(kept.select(2, 5)), agree);
  AttentionDropout next = dropout;
  next.call = 1;
  ExpectShare(kept.eq(Taken(next, one).gt(0)), agree);
  next.call = uint64_t{1} << 32;
  ExpectShare(kept.eq(Taken(next, one).gt(0)), agree);
  ExpectShare(kept.slice(1, 1).eq(kept.slice(1, 0, -1)), agree);
  ExpectShare(kept.slice(3, 1).eq(kept.slice(3, 0, -1)), agree);
  // A key of two equal branches is taken once, twice or not at all.
  const at::Tensor twice = Taken(dropout, {{kTokens, 1}, {kTokens, 1}}) * 0.7;
  ExpectShare(twice.lt(0.25), 0.3 * 0.3);
  ExpectShare(twice.gt(0.25).logical_and(twice.lt(0.75)), 2 * 0.3 * 0.7);
  ExpectShare(twice.gt(0.75), 0.7 * 0.7);
}

TEST(DropoutTest, TheSameIsDroppedOnAnyRanksAndInAnyBatch) {
  const std::vector<Branch> branches = {{kTokens, 1}, {kTokens, 1}};
  const at::Tensor taken = Taken({.probability = 0.5, .seeds = {7, 8}, .call = 3}, branches);
  const auto differs = [](const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>() > 1e-12;
  };
  for (const int ranks : {2, 3, 8}) {
    EXPECT_FALSE(differs(taken, Taken({.probability = 0.5, .seeds = {7, 8}, .call = 3}, branches,
                                      ShardMap::Contiguous(kTokens, ranks, 1))));
  }
  for (const uint64_t seed : {7, 8}) {
    const at::Tensor alone = Taken({.probability = 0.5, .seeds = {seed}, .call = 3}, branches);
    EXPECT_FALSE(differs(taken.narrow(0, seed - 7, 1), alone));
    EXPECT_TRUE(differs(taken.narrow(0, 8 - seed, 1), alone));
  }
}

// For devices: tokens beyond 32 bits, any keys, in blocks.
TEST(DropoutTest, IntegerOperationsOfLibTorchDropTheSame) {
  Random random(3);
  std::vector<int64_t> own, keys;
  for (int64_t i = 0; i < 12; ++i) own.push_back(random.Between(0, int64_t{1} << 50));
  for (int64_t i = 0; i < 30; ++i) keys.push_back(random.Between(0, int64_t{1} << (i + 10)));
  Part part{.branch = 2};
  part.queries = {
      .runs = {{0, 2, 6, 1}, {6, 1, 6, 3}}, .group_begin = {0, 1, 2}, .rows_per_group = 6};
  part.keys = {
      .runs = {{0, 1, 15, 0}, {15, 1, 15, 0}}, .group_begin = {0, 1, 2}, .rows_per_group = 15};
  const AttentionDropout dropout = {.probability = 0.4, .seeds = {~uint64_t{0}, 5}, .call = 9};
  const DropoutMask mask(dropout, part, own, keys, at::kCPU);
  const at::Tensor all = mask.Factors(0, 4, 0, 6, 15, at::kDouble);
  EXPECT_TRUE(mask.Factors(1, 2, 2, 3, 7, at::kDouble)
                  .equal(all.slice(0, 1, 3).slice(1, 2, 5).slice(2, 0, 7)));
  EXPECT_TRUE(mask.Factors(0, 4, 0, 6, 15, at::kFloat).equal(all.to(at::kFloat)));
  for (int64_t group = 0; group < 4; ++group) {
    const auto key =
        kernels::Philox({{9, 0, group % 2 == 0 ? 1u : 3u, 2}}, dropout.seeds[group / 2]);
    const at::Tensor philox_key =
        at::full({1}, static_cast<int64_t>(key.words[0] | uint64_t{key.words[1]} << 32), at::kLong);
    std::vector<int64_t> queries,
        seen(keys.begin() + group % 2 * 15, keys.begin() + group % 2 * 15 + 15);
    for (int64_t i = 0; i < 6; ++i) queries.push_back(own[group % 2 == 0 ? 2 * i : 6 + i]);
    EXPECT_TRUE(DropoutFactorsOnDevice(0.4, philox_key, at::tensor(queries, at::kLong).view({1, 6}),
                                       at::tensor(seen, at::kLong).view({1, 15}), at::kDouble)
                    .equal(all.narrow(0, group, 1)));
  }
}

// Rows of more keys than a block has threads, of tokens beyond 32 bits.
TEST(DropoutTest, ADeviceDropsTheSame) {
  if (g_flags.device.is_cpu()) {
    GTEST_SKIP() << "compares a GPU with the CPU: run it with --device=cuda";
  }
  ASSERT_EQ(WhyNoTileKernels(at::empty({0}, at::TensorOptions(g_flags.device))), "");
  Random random(4);
  std::vector<int64_t> own, keys;
  for (int64_t i = 0; i < 40; ++i) own.push_back(random.Between(0, int64_t{1} << 50));
  for (int64_t i = 0; i < 600; ++i) keys.push_back(random.Between(0, int64_t{1} << 50));
  Part part{.branch = 2};
  part.queries = {
      .runs = {{0, 2, 20, 1}, {1, 2, 20, 3}}, .group_begin = {0, 1, 2}, .rows_per_group = 20};
  part.keys = {
      .runs = {{0, 2, 300, 0}, {1, 2, 300, 0}}, .group_begin = {0, 1, 2}, .rows_per_group = 300};
  const AttentionDropout dropout = {.probability = 0.4, .seeds = {~uint64_t{0}, 5}, .call = 9};
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const auto factors = [&](at::Device at) {
      return DropoutMask(dropout, part, own, keys, at).Factors(1, 3, 2, 17, 290, dtype).cpu();
    };
    EXPECT_TRUE(factors(g_flags.device).equal(factors(at::kCPU)));
  }
}

TEST(DropoutTest, OfNothingChangesNoBitAndNoExecutor) {
  at::manual_seed(6);
  const auto randn = [](int64_t heads) { return at::randn({1, 300, heads, 64}).to(at::kBFloat16); };
  const at::Tensor q = randn(2), k = randn(1), v = randn(1);
  const DilatedAttentionOptions options{.branches = {{100, 1}, {300, 3}}};
  EXPECT_TRUE(DilatedAttention(q, k, v, options, {.probability = 0})
                  .out.equal(DilatedAttention(q, k, v, options).out));
  EXPECT_EQ(MakeCall(q, k, v, options, {.probability = 0}).why_not_tiles,
            MakeCall(q, k, v, options).why_not_tiles);
  EXPECT_EQ(MakeCall(q, k, v, options, {.probability = 0.1, .seeds = {1}}).why_not_tiles,
            "the kernels know no dropout");
  EXPECT_EQ(DescribeExecutor(q, options, 300, /*dropout=*/true),
            "stock operations: the kernels know no dropout");
}

TEST(DropoutTest, RefusesWhatIsNoProbabilityAndSeedsOfAnotherBatch) {
  const at::Tensor q = at::randn({2, 5, 1, 4});
  const auto error = [&](const AttentionDropout& dropout) -> std::string {
    try {
      DilatedAttention(q, q, q, {.branches = {{4, 1}}}, dropout);
    } catch (const c10::ValueError& e) {
      return e.what_without_backtrace();
    }
    return "";
  };
  EXPECT_EQ(error({.probability = 0.999, .seeds = {1, 2}}), "");
  for (const double probability : {1.0, -0.1, std::nan("")}) {
    EXPECT_THAT(error({.probability = probability, .seeds = {1, 2}}),
                HasSubstr("it must be at least 0 and below 1"));
  }
  EXPECT_THAT(error({.probability = 0.5, .seeds = {1}}),
              HasSubstr("seeds of dropout are 1; the batch has 2 sequences"));
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunTestsOfCases(argc, argv, &ringmaster::attention::g_flags);
}
