#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/plan/head_shares.h"
#include "attention/plan/options.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// Rows of one key/value head that one rank needs from another, for one segment of one branch, or
// those of one block of a mask and one document: global tokens first, first + step, ..., `count` of
// them, all held by the sender in one range.
struct RowRun {
  int branch = 0;
  int64_t segment = 0;  // its first token; or the number of the piece (block_pieces.h)
  int64_t offset = 0;
  int kv_head = 0;
  int64_t first = 0;
  int64_t step = 1;
  int64_t count = 0;

  friend bool operator==(const RowRun&, const RowRun&) = default;
};

// The backward pass computes this many times as much as the forward one: five products for two.
inline constexpr double kBackwardOverForward = 2.5;

// How the ranks of a ring compute together.
//   kGrouped: each rank its own queries. Rows of keys and values that another rank's queries see go
//             there, and their gradients come back.
//   kHeads:   each rank some of the heads of the whole sequence (HeadShares). Queries, keys and
//             values go to the ranks of their heads, and outputs come back (all-to-all).
enum class Strategy { kGrouped, kHeads };

// What travels between the ranks of one sequence. Grouped, sparsify first, then exchange only the
// rows of keys and values that a remote query sees. Each pair of ranks swaps at most one message
// per direction and pass, with the rows of all branches, K and V together; the backward pass
// mirrors the forward one with the dK and dV of the same rows. A row that several branches need
// travels once for each. Everything follows from the arguments, so that all ranks and the
// coordinator compute the same plan. Immutable value; thread-compatible.
class AttentionPlan {
 public:
  // InvalidArgument as Validate(pattern), or unless heads is a positive multiple of kv_heads >= 1,
  // or for gates, whose heads cannot be told apart, with kHeads.
  static absl::StatusOr<AttentionPlan> Create(AttentionPattern pattern, ShardMap map, int heads,
                                              int kv_heads, Strategy strategy = Strategy::kGrouped);

  const AttentionPattern& pattern() const { return pattern_; }
  const ShardMap& map() const { return shares_.map(); }
  int heads() const { return shares_.heads(); }
  int kv_heads() const { return shares_.kv_heads(); }
  Strategy strategy() const { return strategy_; }
  // Who computes which heads, of kHeads.
  const HeadShares& shares() const { return shares_; }

  // The rows of `from` that queries of `to` need, in message order: by branch, segment, offset, kv
  // head, range; of a mask by kv head, block, range. With from == to: rows a rank keeps for its own
  // later ranges; these never travel, and a mask has none. Of kGrouped only, else none. The cost
  // does not depend on the number of tokens, only on branches, heads and ranges; of a mask it grows
  // with its bits.
  std::vector<RowRun> Runs(int from, int to) const;
  // The sum of the counts of Runs(from, to).
  int64_t Rows(int from, int to) const;

  // Bytes that go from -> to in a pass, in one message, or with kHeads in two; zero means that no
  // message is sent. Grouped, the backward message from -> to holds the gradients of Runs(to,
  // from).
  uint64_t ForwardBytes(int from, int to, const MessageShape& shape) const;
  uint64_t BackwardBytes(int from, int to, const MessageShape& shape) const;

  // What `rank` sends in one call of the operator.
  uint64_t SentBytesForward(int rank, const MessageShape& shape) const;
  uint64_t SentBytesBackward(int rank, const MessageShape& shape) const;

  // Multiplications and additions of the two forward products of `rank`: 4 * head_dim for each pair
  // of a query and a key it sees.
  double ForwardFlops(int rank, const MessageShape& shape) const;

 private:
  AttentionPlan(AttentionPattern pattern, HeadShares shares, Strategy strategy)
      : pattern_(std::move(pattern)), shares_(std::move(shares)), strategy_(strategy) {}

  AttentionPattern pattern_;
  HeadShares shares_;
  Strategy strategy_;
};

}  // namespace ringmaster::attention
