#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/plan/options.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// How many positions below `position` of a segment are congruent to `offset` modulo `rate`. The
// selected tokens of a segment are numbered 0, 1, ... in order; number i lies at offset + i * rate.
inline int64_t SelectedBefore(int64_t position, int64_t offset, int64_t rate) {
  return position <= offset ? 0 : (position - offset - 1) / rate + 1;
}

// The segment length that `branch` has in a sequence of `tokens`.
inline int64_t ClampedSegmentLength(const Branch& branch, int64_t tokens) {
  return std::max<int64_t>(1, std::min(branch.segment_length, tokens));
}

// Segment number `index`, clipped to the sequence.
inline TokenRange SegmentAt(int64_t index, int64_t segment_length, int64_t tokens) {
  const int64_t begin = index * segment_length;
  return {begin, tokens - begin < segment_length ? tokens : begin + segment_length};
}

inline TokenRange Intersect(const TokenRange& a, const TokenRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

}  // namespace ringmaster::attention
