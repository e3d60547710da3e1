#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/passes.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "tests/attention/attention_case.h"
#include "tests/worker/train/ring_scenarios.h"
#include "worker/comm/collectives.h"
#include "worker/torch_status.h"

namespace ringmaster::worker {
namespace {

using attention::AttentionCase;
using attention::AttentionResult;
using attention::CaseErrors;
using attention::kTensors;

struct Cases {
  std::string name;
  int64_t min_tokens;
  int64_t max_tokens;
  uint64_t first_seed;
  int count;
};

// bf16 and fp32 in turn, every third a mask, every fifth by heads. Those of bf16 are such as
// kernels over tiles take.
AttentionCase MakeCase(const Cases& cases, uint64_t seed, int ranks) {
  const attention::CaseLimits limits = {.min_tokens = cases.min_tokens,
                                        .max_tokens = cases.max_tokens,
                                        .dtypes = {seed % 2 == 0 ? at::kBFloat16 : at::kFloat},
                                        .ranks = {ranks},
                                        .head_dims = {64, 128}};
  AttentionCase problem = seed % 3 == 0 ? attention::RandomBlockCase(seed, limits)
                                        : attention::RandomCase(seed, limits);
  if (seed % 5 == 0) problem.strategy = attention::Strategy::kHeads;
  if (problem.q.scalar_type() == at::kBFloat16) {
    std::optional<double>& scale =
        problem.blocks.has_value() ? problem.blocks->scale : problem.options.scale;
    if (scale.value_or(1) <= 0) scale.reset();
    problem.options.mix_gradient = attention::MixGradient::kExact;
  }
  return problem;
}

// The parts of all ranks, for rank 0. Others get their own back.
absl::StatusOr<std::vector<AttentionResult>> Gather(const AttentionCase& problem, at::Device device,
                                                    AttentionResult own, Communicator& ring) {
  struct Traffic {
    uint64_t bytes;
    int messages;
  };
  ASSIGN_OR_RETURN(const std::vector<Traffic> sent,
                   AllGather(ring, Traffic{own.sent_bytes, own.sent_messages}));
  const int rank = ring.world().rank();
  std::vector<AttentionResult> parts(problem.map.ranks());
  for (int from = 1; from < problem.map.ranks(); ++from) {
    parts[from].sent_bytes = sent[from].bytes;
    parts[from].sent_messages = sent[from].messages;
    for (const auto tensor : {&AttentionResult::out, &AttentionResult::lse, &AttentionResult::dq,
                              &AttentionResult::dk, &AttentionResult::dv}) {
      std::vector<int64_t> sizes = (own.*tensor).sizes().vec();
      sizes[1] = problem.map.LocalTokens(from);
      const at::Tensor carried = rank == from
                                     ? (own.*tensor).to(device).contiguous()
                                     : at::empty(rank == 0 ? sizes : std::vector<int64_t>{0},
                                                 (own.*tensor).options().device(device));
      RETURN_IF_ERROR(Broadcast(ring.world(), carried, from, {0}));
      parts[from].*tensor = carried.cpu();
    }
  }
  parts[rank] = std::move(own);
  return parts;
}

// As property_test.cc and tile_passes_test.cc do.
void CheckCase(const AttentionCase& problem, const AttentionResult& result, at::Device device) {
  const attention::ReferenceResult reference = attention::ReferenceAttention(
      problem.q, problem.k, problem.v, problem.dout, problem.pattern());
  const CaseErrors same = SamePrecisionErrors(problem, reference, device.is_cuda());
  AttentionCase alone = problem;
  alone.map = attention::ShardMap::Contiguous(problem.map.tokens(), 1, 1);
  const CaseErrors of_one =
      ErrorsOf(RunRank(alone, attention::Path::kAsCalled, device, 0, nullptr), reference);
  const CaseErrors errors = ErrorsOf(result, reference);
  EXPECT_FALSE(result.out.isnan().any().item<bool>());
  EXPECT_TRUE(result.lse.isneginf().equal(reference.lse.isneginf()));
  const AttentionResult planned = PlannedTraffic(problem);
  EXPECT_EQ(result.sent_bytes, planned.sent_bytes);
  EXPECT_EQ(result.sent_messages, planned.sent_messages);
  std::printf("  sent %llu bytes in %d messages; error of the ranks (of one rank; of the model):",
              static_cast<unsigned long long>(result.sent_bytes), result.sent_messages);
  for (size_t i = 0; i < errors.size(); ++i) {
    std::printf("  %s %.1e (%.1e; %.1e)", kTensors[i], errors[i], of_one[i], same[i]);
    EXPECT_LE(errors[i], attention::ErrorLimit(problem.q.scalar_type(), i, same[i])) << kTensors[i];
  }
  std::printf("\n");
}

absl::Status Attention(Rank& rank, const Cases& cases) {
  ASSIGN_OR_RETURN(const auto ring, rank.Form(1, kRingDeadline));
  const at::Device device = DeviceOf(rank);
  const int threads = at::get_num_threads();
  std::vector<AttentionCase> problems;
  std::vector<AttentionResult> results;
  for (int i = 0; i < cases.count; ++i) {
    problems.push_back(MakeCase(cases, cases.first_seed + i, rank.size()));
    AttentionResult own =
        RunRank(problems[i], attention::Path::kAsCalled, device, rank.rank(), &ring->world());
    at::set_num_threads(threads);
    ASSIGN_OR_RETURN(const std::vector<AttentionResult> parts,
                     Gather(problems[i], device, std::move(own), *ring));
    if (rank.rank() == 0) results.push_back(PutTogether(problems[i], parts));
  }
  RETURN_IF_ERROR(ring->Close());
  for (size_t i = 0; i < results.size(); ++i) {
    const at::Tensor& q = problems[i].q;
    const std::string executor =
        DescribeExecutor(q.to(device), problems[i].pattern(), problems[i].map.tokens());
    const std::string text = problems[i].Describe();
    // Of a mask some rows are enough.
    const std::string label = absl::StrCat("seed ", cases.first_seed + i, ", ", executor, ": ",
                                           text.substr(0, 250), text.size() > 250 ? "..." : "");
    SCOPED_TRACE(label);
    std::printf("%s\n", label.c_str());
    CheckCase(problems[i], results[i], device);
    at::set_num_threads(threads);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Scenario> RingAttentionScenarios() {
  std::vector<Scenario> scenarios;
  for (const Cases& cases :
       {Cases{"ShortAttention", 257, 300, 2, 6}, Cases{"Attention", 700, 1500, 5, 18},
        Cases{"LongAttention", 4000, 5000, 5, 4}}) {
    for (const int ranks : {2, 4}) {
      scenarios.push_back({absl::StrCat(cases.name, ranks), ranks, [cases](Rank& rank) {
                             return CatchTorch(cases.name, [&] { return Attention(rank, cases); });
                           }});
    }
  }
  return scenarios;
}

}  // namespace ringmaster::worker
