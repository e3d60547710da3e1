#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "attention/dropout.h"
#include "attention/passes.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"
#include "attention/reference_attention.h"

namespace ringmaster::attention {

// One random problem of the whole sequence, with the ranks that share it.
struct AttentionCase {
  at::Tensor q, k, v, dout;
  DilatedAttentionOptions options;
  std::optional<BlockSparseAttentionOptions> blocks;  // instead of the options
  at::Tensor log_gates;                               // of blocks that are gated
  AttentionDropout dropout;
  ShardMap map = ShardMap::Contiguous(0, 1, 1);
  Strategy strategy = Strategy::kGrouped;

  AttentionPattern pattern() const {
    return blocks.has_value() ? AttentionPattern(*blocks) : AttentionPattern(options);
  }
  std::optional<double> scale() const { return blocks.has_value() ? blocks->scale : options.scale; }
  // All that is needed to see what failed.
  std::string Describe() const;
};

struct CaseLimits {
  int64_t min_tokens = 1;
  int64_t max_tokens = 200;
  std::vector<at::ScalarType> dtypes = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};
  std::vector<int> ranks = {1, 2, 3, 4, 5, 8};
  std::vector<int64_t> head_dims = {1, 2, 3, 4, 5, 8, 16, 17, 32};
};

// The same seed gives the same case. dout holds NaN at positions that see no key.
AttentionCase RandomCase(uint64_t seed, const CaseLimits& limits);
AttentionCase RandomBlockCase(uint64_t seed, const CaseLimits& limits);

struct AttentionResult {
  at::Tensor out, lse, dq, dk, dv;
  at::Tensor dlog_gates;  // the sum over the ranks
  // Sent by all ranks in forward and backward together.
  uint64_t sent_bytes = 0;
  int sent_messages = 0;
};

// kAsCalled: through the operator and autograd. kLongSequence: through the passes beneath,
// summing in fp32 as it is done for longer sequences.
enum class Path { kAsCalled, kLongSequence };

// Runs the operator of the pattern and its backward on all ranks of the case's map, each a thread,
// and puts the results together in the order of the sequence, on the CPU. A map of one rank runs
// without an exchange. On a GPU all ranks share it, and the passes beneath are called: autograd has
// one thread a device, in which one rank's backward would wait for the others'. Rethrows what a
// rank threw. `change` may change what a rank's passes are called with: it is for kLongSequence.
using ChangeCall = std::function<void(int rank, Call* call)>;
AttentionResult RunRanks(const AttentionCase& problem, Path path = Path::kAsCalled,
                         at::Device device = at::kCPU, const ChangeCall& change = {});

// What they are made of: one rank's part, of its tokens, with what it sent; and the parts together.
// Without an exchange for a map of one rank.
AttentionResult RunRank(const AttentionCase& problem, Path path, at::Device device, int rank,
                        GroupedExchange* exchange, const ChangeCall& change = {});
AttentionResult PutTogether(const AttentionCase& problem,
                            const std::vector<AttentionResult>& parts);

// The bytes and messages that the plan announces for such a run.
AttentionResult PlannedTraffic(const AttentionCase& problem);

// RelativeError of each tensor of a result.
constexpr std::array<const char*, 5> kTensors = {"out", "lse", "dq", "dk", "dv"};
constexpr size_t kLse = 1, kDq = 2, kDk = 3;
using CaseErrors = std::array<double, 5>;
CaseErrors ErrorsOf(const AttentionResult& result, const ReferenceResult& reference);
CaseErrors ErrorsOf(const ReferenceResult& result, const ReferenceResult& reference);

// What a model of the problem's own precision misses by (SamePrecisionReference). Of fused kernels
// over branches that is two models, and the larger error counts: kernels over tiles join some
// branches in one softmax and run others alone, so that they round as the one or as the other. Of
// dq and dk 0 where the oracle has nothing but zeros: the models leave the rounding of what cancels
// there, no call may.
CaseErrors SamePrecisionErrors(const AttentionCase& problem, const ReferenceResult& reference,
                               bool fused);

// What every call must meet: fp64 1e-10, fp32 2e-5, and for bf16 and fp16 twice what a model of the
// same precision misses by, but for lse, which is fp32 then.
double ErrorLimit(at::ScalarType dtype, size_t tensor, double same_precision);

}  // namespace ringmaster::attention
