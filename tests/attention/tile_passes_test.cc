// The operator by lists of tiles against the dense oracle: packing, exchange, merge, gradients.
// With kernels that run on the host (tile_ops_on_host.cc), or, with --device=cuda, with those of
// the GPU.
#include "attention/tile_passes.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "tests/attention/attention_case.h"
#include "tests/attention/flags.h"

namespace ringmaster::attention {
namespace {

CaseFlags g_flags = {.cases = 24};

// A case that tiles take.
AttentionCase TileCase(uint64_t seed) {
  AttentionCase problem = RandomCase(seed, {.min_tokens = kMaxShortTokens + 1,
                                            .max_tokens = 300,
                                            .dtypes = {at::kBFloat16},
                                            .ranks = {1, 2, 3, 4},
                                            .head_dims = {64, 128}});
  problem.options.mix_gradient = MixGradient::kExact;
  if (problem.options.scale.value_or(1) <= 0) problem.options.scale = 0.2;
  return problem;
}

TEST(TilePassesTest, EqualTheDenseOracle) {
  // Memory that nobody has written is NaN; on a GPU the other kernels would run.
  at::globalContext().setDeterministicAlgorithms(g_flags.device.is_cpu(), /*warn_only=*/true);
  CaseErrors worst = {};
  int exceptions = 0;
  for (int i = 0; i < g_flags.cases && !HasFailure(); ++i) {
    const uint64_t seed = g_flags.seed + i;
    const AttentionCase problem = TileCase(seed);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << problem.Describe());
    ASSERT_EQ(
        WhyNotTiles(problem.q, problem.options, problem.options.scale.value_or(1), at::kFloat), "");
    const ReferenceResult reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.options);
    const CaseErrors same =
        ErrorsOf(SamePrecisionReference(problem.q, problem.k, problem.v, problem.dout,
                                        problem.options, /*fused_backward=*/true),
                 reference);
    const AttentionResult result = RunRanks(problem, Path::kAsCalled, g_flags.device);
    EXPECT_TRUE(result.lse.isneginf().equal(reference.lse.isneginf()));
    const AttentionResult planned = PlannedTraffic(problem);
    EXPECT_EQ(result.sent_bytes, planned.sent_bytes);
    EXPECT_EQ(result.sent_messages, planned.sent_messages);
    const CaseErrors errors = ErrorsOf(result, reference);
    bool exception = false;
    for (size_t i = 0; i < errors.size(); ++i) {
      // lse is fp32. Where queries see few keys, or one key has almost all of their weight,
      // gradients are differences of what is almost equal, and which way the saved output was
      // rounded decides the largest error, the model's as the kernels'.
      const double limit = i == kLse ? 2e-5 : 2 * same[i];
      EXPECT_LE(errors[i], i > kLse ? 2 * limit : limit) << kTensors[i];
      exception |= errors[i] > limit;
      worst[i] = std::max(worst[i], same[i] > 0 ? errors[i] / same[i] : 0);
    }
    exceptions += exception ? 1 : 0;
  }
  std::printf("seeds %llu.., %d exceptions of %d; times the dense model's error at most:",
              static_cast<unsigned long long>(g_flags.seed), exceptions, g_flags.cases);
  for (size_t i = 0; i < worst.size(); ++i) std::printf("  %s %.2f", kTensors[i], worst[i]);
  std::printf("\n");
  EXPECT_LE(exceptions, 1 + g_flags.cases / 50);
}

TEST(TilePassesTest, SaysWhyNot) {
  const at::Tensor q = at::zeros({1, 300, 2, 64}, at::kBFloat16);
  const DilatedAttentionOptions options = {.branches = {{64, 1}, {128, 2}}};
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kFloat), "");
  EXPECT_EQ(WhyNotTiles(q.to(at::kFloat), options, 0.1, at::kFloat),
            "the dtype is Float, not BFloat16");
  EXPECT_EQ(WhyNotTiles(q, options, 0.1, at::kDouble), "short sequences are summed in fp64");
  EXPECT_EQ(WhyNotTiles(q.slice(3, 0, 32), options, 0.1, at::kFloat),
            "the head dimension is 32, not 64 or 128");
  for (const double scale : {0.0, -1.0, 1e-60, std::nan("")}) {
    EXPECT_NE(WhyNotTiles(q, options, scale, at::kFloat), "");
  }
  DilatedAttentionOptions other = options;
  other.mix_gradient = MixGradient::kDetached;
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat),
            "detached mixing weights need the output of each branch");
  other.branches.resize(1);
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat), "");
  other.branches.resize(15, {64, 1});
  other.mix_gradient = MixGradient::kExact;
  EXPECT_EQ(WhyNotTiles(q, other, 0.1, at::kFloat), "15 branches, more than 14");
  EXPECT_NE(WhyNotTiles(q.expand({65536, 300, 2, 64}), options, 0.1, at::kFloat), "");
  EXPECT_NE(WhyNotTiles(q[0][0][0].expand({1, int64_t{1} << 30, 1, 64}), options, 0.1, at::kFloat),
            "");
  EXPECT_NE(WhyNotTiles(q[0][0][0].expand({1, int64_t{1} << 29, 4, 64}), options, 0.1, at::kFloat),
            "");
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return ringmaster::attention::ParseCaseFlags(argc, argv, &ringmaster::attention::g_flags)
             ? RUN_ALL_TESTS()
             : 2;
}
