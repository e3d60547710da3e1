#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/options.h"
#include "attention/reference_attention.h"
#include "attention/shard_map.h"

namespace ringmaster::attention {

// One random problem of the whole sequence, with the ranks that share it.
struct AttentionCase {
  at::Tensor q, k, v, dout;
  DilatedAttentionOptions options;
  ShardMap map = ShardMap::Contiguous(0, 1, 1);

  // All that is needed to see what failed.
  std::string Describe() const;
};

struct CaseLimits {
  int64_t max_tokens = 200;
  std::vector<at::ScalarType> dtypes = {at::kDouble, at::kFloat, at::kBFloat16};
  std::vector<int> ranks = {1, 2, 3, 4, 5, 8};
};

// The same seed gives the same case. dout holds NaN at positions that no branch covers.
AttentionCase RandomCase(uint64_t seed, const CaseLimits& limits);

struct AttentionResult {
  at::Tensor out, lse, dq, dk, dv;
  // Sent by all ranks in forward and backward together.
  uint64_t sent_bytes = 0;
  int sent_messages = 0;
};

// kAsCalled: through DilatedAttention and autograd. kLongSequence: through the passes beneath,
// summing in fp32 as for sequences too long for tests.
enum class Path { kAsCalled, kLongSequence };

// Runs the operator and its backward on all ranks of the case's map, each a thread, and puts
// the results together in the order of the sequence. A map of one rank runs without an exchange.
// Rethrows what a rank threw.
AttentionResult RunRanks(const AttentionCase& problem, Path path = Path::kAsCalled);

// The bytes and messages that the plan announces for such a run.
AttentionResult PlannedTraffic(const AttentionCase& problem);

// RelativeError, except where the reference is all but zero by cancellation (a query with one key
// has no gradient): there the error counts against `unit`, the size of what cancels.
double CaseError(const at::Tensor& x, const at::Tensor& reference, double unit);

struct CaseErrors {
  double out = 0, lse = 0, dq = 0, dk = 0, dv = 0;
};
CaseErrors ErrorsOf(const AttentionCase& problem, const AttentionResult& result,
                    const ReferenceResult& reference);

}  // namespace ringmaster::attention
