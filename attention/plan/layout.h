#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// A call of the operator that the ranks of a ring share.
struct RingCall {
  AttentionPattern pattern;
  int64_t tokens = 0;
  int ranks = 1;
  int heads = 1;
  int kv_heads = 1;
  MessageShape shape;
};

// What times are predicted with.
struct RingRates {
  // Of attention on one rank, forward and backward.
  double flops_per_second = 350e12;
  // Each way between a rank and all others: of a link of 400 Gb/s. NVLink's are about 350e9.
  double bytes_per_second = 45e9;
};

// Those of an H100 or of threads of a CPU, from what both a job and its ranks know. On GPUs our own
// kernels do half precision at 350e12; wider types run on stock operations, taken to reach 60 % of
// the 67e12 there are for fp32, which is not measured. A thread of a CPU with AVX-512 does 100e9 in
// fp32, between hosts with links of 10 Gb/s.
RingRates RatesOf(bool gpu, int64_t element_bytes, int threads);

// What a layout costs in one call, forward and backward together, by formula. Figures of ranks are
// those of the rank that has most; of large rings only some are looked at for what they exchange.
struct LayoutCost {
  double seconds = 0;  // of the slowest rank, as if nothing were computed during an exchange
  double exchange_seconds = 0;  // of those
  double imbalance = 1;         // computing of the busiest rank, of the mean
  double exchanged_bytes = 0;   // sent, or received where that is more
  double memory_bytes = 0;      // saved and transient (RankTraffic), of one layer
};

// Ranks of which to predict what they exchange, where all would take too long: at most `most`, and
// no more than that many looks at a peer's keys of one head and branch allow, 2^22 of which take
// half a second; maybe none. They are spread evenly, the first and the last among them if there are
// two. All of Strategy::kHeads, which cost little and are busy at equal distances.
std::vector<int> SampleRanks(const AttentionPlan& plan, int most, double looks);

// One way to share a sequence.
struct Layout {
  ShardMap map;
  Strategy strategy = Strategy::kGrouped;
  std::string name;
  LayoutCost cost;  // zero where nothing is predicted
};

// The ways that were compared, the chosen one first, the others in the order in which they were
// tried.
struct Layouts {
  std::vector<Layout> all;
  // Why that one, if not for its cost.
  std::string reason;

  const Layout& chosen() const { return all.front(); }
  const ShardMap& map() const { return chosen().map; }
  Strategy strategy() const { return chosen().strategy; }
  // A line for each, for people.
  std::vector<std::string> Explain() const;
};

// Chooses who holds which tokens and what travels: the layout of the least time, or an earlier one
// that comes within 2 %, or within 10 % of swapped heads. Memory is told, not weighed. Tried are,
// with rows of keys and values exchanged, contiguous chunks, with borders on multiples of long
// segments or of a mask's blocks, where no rank has an eighth more than the mean, so that what lies
// within a segment stays on a rank; then, causal, pairs of an early and a late chunk (zigzag), so
// that each rank has as much to compute; then four chunks each, dealt out by the work there is in
// them; then tokens swapped for heads. Everything follows from the arguments, and not from the
// batch, so that whoever has the same rates chooses the same. What takes too long to predict
// (rings of hundreds of ranks with hundreds of heads) gets the first of them. InvalidArgument as
// AttentionPlan::Create. REQUIRES: tokens >= 0, ranks >= 1.
absl::StatusOr<Layouts> ChooseLayout(const RingCall& call, const RingRates& rates = {});

// The plan of a call whose sequence is shared like this. InvalidArgument as AttentionPlan::Create.
absl::StatusOr<AttentionPlan> PlanOf(const RingCall& call, const Layout& layout);

}  // namespace ringmaster::attention
