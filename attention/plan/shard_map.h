#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ringmaster::attention {

// Global token positions [begin, end).
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// Which token ranges of one sequence each rank of a ring holds. A rank's local tokens are its
// ranges in ascending order, one after the other; a rank may hold none. Immutable value;
// thread-compatible.
class ShardMap {
 public:
  // Rank p holds one range, borders on multiples of `align` while there are at least `ranks` such
  // multiples in the sequence, else on any token. Shards are as even as that allows; when tokens <
  // ranks some are empty. REQUIRES: tokens >= 0, ranks >= 1, align >= 1.
  static ShardMap Contiguous(int64_t tokens, int ranks, int64_t align);

  // Rank p holds chunks p and 2 * ranks - 1 - p of twice as many, which are cut as above: one of
  // the early tokens, which see few others when causal, and one of the late. REQUIRES: as above.
  static ShardMap Zigzag(int64_t tokens, int ranks, int64_t align);

  // Rank p holds what ranks held[p] of this map do; ranges that touch become one. REQUIRES: a
  // contiguous map, of which each rank is in one of `held`, and these ascend.
  ShardMap Join(absl::Span<const std::vector<int>> held) const;

  // InvalidArgument unless each rank's ranges are ascending and not empty, and all ranges together
  // hold every token of [0, tokens) exactly once.
  static absl::StatusOr<ShardMap> FromRanges(int64_t tokens,
                                             std::vector<std::vector<TokenRange>> ranges);

  int64_t tokens() const { return tokens_; }
  int ranks() const { return static_cast<int>(ranges_.size()); }
  // Ascending and not empty, none for a rank without tokens.
  absl::Span<const TokenRange> Ranges(int rank) const { return ranges_[rank]; }
  int64_t LocalTokens(int rank) const;
  // The global positions of `rank`'s tokens in local order.
  std::vector<int64_t> Positions(int rank) const;

  friend bool operator==(const ShardMap&, const ShardMap&) = default;

 private:
  ShardMap(int64_t tokens, std::vector<std::vector<TokenRange>> ranges)
      : tokens_(tokens), ranges_(std::move(ranges)) {}

  int64_t tokens_;
  std::vector<std::vector<TokenRange>> ranges_;
};

}  // namespace ringmaster::attention
