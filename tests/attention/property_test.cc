// Random problems of any shape against the dense fp64 oracle; flags: tests/attention/flags.h.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <optional>
#include <vector>

#include "attention/dilated_attention.h"
#include "attention/passes.h"
#include "attention/reference_attention.h"
#include "tests/attention/attention_case.h"
#include "tests/attention/disordered_exchange.h"
#include "tests/attention/flags.h"

namespace ringmaster::attention {
namespace {

CaseFlags g_flags = {.cases = 2000};

// Of fp32 that is summed in fp64 nothing is rounded but results and what eight ranks send, each by
// half a step.
constexpr double kRoundedOnce = 8 * 0x1p-24;

// What was checked, by type and path.
class Tally {
 public:
  void Check(const AttentionCase& problem, Path path, const ReferenceResult& reference,
             const CaseErrors& same) {
    const at::ScalarType dtype = problem.q.scalar_type();
    const bool fp64_sums = dtype == at::kDouble ||
                           (path == Path::kAsCalled && problem.map.tokens() <= kMaxShortTokens);
    const AttentionResult result = RunRanks(problem, path, g_flags.device);
    EXPECT_EQ(result.out.scalar_type(), dtype);
    EXPECT_EQ(result.lse.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
    EXPECT_FALSE(result.out.isnan().any().item<bool>());
    EXPECT_TRUE(result.lse.isneginf().equal(reference.lse.isneginf()));
    const AttentionResult planned = PlannedTraffic(problem);
    EXPECT_EQ(result.sent_bytes, planned.sent_bytes);
    EXPECT_EQ(result.sent_messages, planned.sent_messages);
    const CaseErrors errors = ErrorsOf(result, reference);
    Row& row = rows_[{dtype, fp64_sums}];
    for (size_t i = 0; i < errors.size(); ++i) {
      const double limit =
          dtype == at::kFloat && fp64_sums ? kRoundedOnce : ErrorLimit(dtype, i, same[i]);
      EXPECT_LE(errors[i], limit) << kTensors[i];
      row.worst[i] = std::max(row.worst[i], errors[i]);
    }
    ++row.cases;
  }

  // Whatever order messages travel and arrive in.
  void CheckDisorder(const AttentionCase& problem, uint64_t seed) {
    const AttentionResult expected = RunRanks(problem, Path::kLongSequence);
    std::vector<std::optional<DisorderedExchange>> exchanges(problem.map.ranks());
    const AttentionResult result =
        RunRanks(problem, Path::kLongSequence, at::kCPU, [&](int rank, Call* call) {
          call->exchange = &exchanges[rank].emplace(call->exchange, seed + rank);
        });
    const auto expect_same = [](const char* name, const at::Tensor& a, const at::Tensor& b) {
      EXPECT_TRUE(a.equal(b)) << name << " depends on the order of arrival";
    };
    expect_same("out", result.out, expected.out);
    expect_same("lse", result.lse, expected.lse);
    expect_same("dq", result.dq, expected.dq);
    expect_same("dk", result.dk, expected.dk);
    expect_same("dv", result.dv, expected.dv);
    ++disordered_;
  }

  void Print() const {
    for (const auto& [key, row] : rows_) {
      std::printf("%-9s sums in %s: %4d cases, worst", c10::toString(key.first),
                  key.second ? "fp64" : "fp32", row.cases);
      for (size_t i = 0; i < kTensors.size(); ++i) {
        std::printf("  %s %.1e", kTensors[i], row.worst[i]);
      }
      std::printf("\n");
    }
    std::printf("%d cases in another order of arrival\n", disordered_);
  }

 private:
  struct Row {
    int cases = 0;
    CaseErrors worst = {};
  };
  std::map<std::pair<at::ScalarType, bool>, Row> rows_;
  int disordered_ = 0;
};

using MakeCase = AttentionCase (*)(uint64_t seed, const CaseLimits& limits);

void CheckCases(MakeCase make, int cases, const CaseLimits& limits) {
  std::printf("seeds %llu..%llu\n", static_cast<unsigned long long>(g_flags.seed),
              static_cast<unsigned long long>(g_flags.seed + cases - 1));
  Tally tally;
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const uint64_t seed = g_flags.seed + i;
    AttentionCase problem = make(seed, limits);
    // Every third of those on several ranks.
    if (seed % 3 == 0 && problem.map.ranks() > 1) problem.strategy = Strategy::kHeads;
    SCOPED_TRACE("--seed=" + std::to_string(seed) + " --cases=1: " + problem.Describe());
    const ReferenceResult reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern());
    const CaseErrors same = SamePrecisionErrors(problem, reference, g_flags.device.is_cuda());
    tally.Check(problem, Path::kAsCalled, reference, same);
    if (problem.q.scalar_type() != at::kDouble && problem.map.tokens() <= kMaxShortTokens) {
      tally.Check(problem, Path::kLongSequence, reference, same);
    }
    if (problem.map.ranks() > 1 && g_flags.device.is_cpu()) tally.CheckDisorder(problem, seed);
  }
  tally.Print();
}

TEST(DilatedAttentionPropertyTest, EqualsTheDenseOracle) {
  CheckCases(&RandomCase, g_flags.cases, {});
}

// Longer than what is summed in fp64.
TEST(DilatedAttentionPropertyTest, LongerSequencesEqualTheDenseOracle) {
  CheckCases(&RandomCase, (g_flags.cases + 19) / 20,
             {.min_tokens = kMaxShortTokens + 1,
              .max_tokens = 400,
              .dtypes = {at::kFloat, at::kBFloat16, at::kHalf},
              .head_dims = {3, 16, 32, 48, 64, 80, 128}});
}

// Of up to six blocks, some shorter than one.
TEST(BlockSparseAttentionPropertyTest, EqualsTheDenseOracle) {
  CheckCases(&RandomBlockCase, (g_flags.cases + 7) / 8,
             {.max_tokens = 700, .head_dims = {5, 32, 64, 128}});
}

// Where a gradient is nothing but what cancels models leave its rounding, which no error relative
// to zeros can say.
double ErrorOfModel(const at::Tensor& model, const at::Tensor& reference) {
  const bool nothing = reference.numel() > 0 && reference.eq(0).all().item<bool>();
  return nothing ? model.abs().max().item<double>() : RelativeError(model, reference);
}

// However they round: of fp64 they round nothing.
TEST(SamePrecisionReferenceTest, OfDoublesIsTheOracle) {
  for (int i = 0; i < 30; ++i) {
    const uint64_t seed = g_flags.seed + i;
    const CaseLimits limits = {.min_tokens = 30, .max_tokens = 90, .dtypes = {at::kDouble}};
    const AttentionCase problem =
        i % 3 == 0 ? RandomBlockCase(seed, limits) : RandomCase(seed, limits);
    SCOPED_TRACE("--seed=" + std::to_string(seed) + ": " + problem.Describe());
    const ReferenceResult reference =
        ReferenceAttention(problem.q, problem.k, problem.v, problem.dout, problem.pattern());
    for (const Rounding rounding :
         {Rounding::kProbabilities, Rounding::kFused, Rounding::kFusedBranches}) {
      if (rounding == Rounding::kFusedBranches && problem.blocks.has_value()) continue;
      const ReferenceResult model = SamePrecisionReference(
          problem.q, problem.k, problem.v, problem.dout, problem.pattern(), rounding);
      const auto is_right = [&](const char* name, const at::Tensor& a, const at::Tensor& b) {
        EXPECT_LE(ErrorOfModel(a, b), 1e-11) << name << ", rounding " << static_cast<int>(rounding);
      };
      is_right("out", model.out, reference.out);
      is_right("lse", model.lse, reference.lse);
      is_right("dq", model.dq, reference.dq);
      is_right("dk", model.dk, reference.dk);
      is_right("dv", model.dv, reference.dv);
    }
  }
}

}  // namespace
}  // namespace ringmaster::attention

int main(int argc, char** argv) {
  return ringmaster::attention::RunTestsOfCases(argc, argv, &ringmaster::attention::g_flags);
}
