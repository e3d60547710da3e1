#include "attention/plan/shard_map.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringmaster::attention {

ShardMap ShardMap::Contiguous(int64_t tokens, int ranks, int64_t align) {
  assert(tokens >= 0 && ranks >= 1 && align >= 1);
  const int64_t unit = tokens / align >= ranks ? align : 1;
  const int64_t units = tokens / unit;
  std::vector<std::vector<TokenRange>> ranges(ranks);
  int64_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    // 128 bits: (rank + 1) * units overflows 64 bits for sequences near 2^63.
    const auto border =
        static_cast<int64_t>(static_cast<__int128>(rank + 1) * units / ranks) * unit;
    const int64_t end = rank + 1 == ranks ? tokens : border;
    if (end > begin) {
      ranges[rank].push_back({begin, end});
    }
    begin = end;
  }
  return ShardMap(tokens, std::move(ranges));
}

ShardMap ShardMap::Zigzag(int64_t tokens, int ranks, int64_t align) {
  const ShardMap chunks = Contiguous(tokens, 2 * ranks, align);
  std::vector<std::vector<int>> held;
  for (int rank = 0; rank < ranks; ++rank) held.push_back({rank, 2 * ranks - 1 - rank});
  return chunks.Join(held);
}

ShardMap ShardMap::Join(absl::Span<const std::vector<int>> held) const {
  std::vector<std::vector<TokenRange>> joined(held.size());
  for (size_t rank = 0; rank < held.size(); ++rank) {
    std::vector<TokenRange>& ranges = joined[rank];
    for (const int chunk : held[rank]) {
      for (const TokenRange& range : Ranges(chunk)) {
        if (!ranges.empty() && ranges.back().end == range.begin) {
          ranges.back().end = range.end;
        } else {
          ranges.push_back(range);
        }
      }
    }
  }
  return ShardMap(tokens_, std::move(joined));
}

absl::StatusOr<ShardMap> ShardMap::FromRanges(int64_t tokens,
                                              std::vector<std::vector<TokenRange>> ranges) {
  if (tokens < 0 || ranges.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("a shard map of ", tokens, " tokens over ",
                                                   ranges.size(),
                                                   " ranks; need tokens >= 0 and ranks >= 1"));
  }
  std::vector<TokenRange> all;
  for (size_t rank = 0; rank < ranges.size(); ++rank) {
    int64_t last = 0;
    for (const TokenRange& range : ranges[rank]) {
      if (range.begin < last || range.end <= range.begin) {
        return absl::InvalidArgumentError(
            absl::StrCat("token range [", range.begin, ", ", range.end, ") of rank ", rank,
                         " is empty or not after the rank's previous range, which ends at ", last));
      }
      last = range.end;
      all.push_back(range);
    }
  }
  std::sort(all.begin(), all.end(),
            [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
  int64_t next = 0;
  for (const TokenRange& range : all) {
    if (range.begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", std::min(next, range.begin),
                       " is held by no rank or by two; every token needs exactly one"));
    }
    next = range.end;
  }
  if (next != tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ranges end at token ", next, ", the sequence has ", tokens, " tokens"));
  }
  return ShardMap(tokens, std::move(ranges));
}

int64_t ShardMap::LocalTokens(int rank) const {
  int64_t count = 0;
  for (const TokenRange& range : ranges_[rank]) {
    count += range.size();
  }
  return count;
}

std::vector<int64_t> ShardMap::Positions(int rank) const {
  std::vector<int64_t> positions;
  positions.reserve(LocalTokens(rank));
  for (const TokenRange& range : ranges_[rank]) {
    const size_t at = positions.size();
    positions.resize(at + range.size());
    std::iota(positions.begin() + at, positions.end(), range.begin);
  }
  return positions;
}

}  // namespace ringmaster::attention
