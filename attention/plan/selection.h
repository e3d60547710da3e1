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

inline TokenRange Intersect(const TokenRange& a, const TokenRange& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// The document that holds `token`, of a sequence of `tokens`.
inline TokenRange DocumentAt(const Documents& documents, int64_t token, int64_t tokens) {
  const auto next = std::upper_bound(documents.begin(), documents.end(), token);
  return {next == documents.begin() ? 0 : *(next - 1), next == documents.end() ? tokens : *next};
}

// The segments of a branch in a sequence of `tokens`. Borrows the documents.
class Segments {
 public:
  Segments(const Branch& branch, const Documents& documents, int64_t tokens)
      : length_(std::max<int64_t>(1, std::min(branch.segment_length, tokens))),
        documents_(documents),
        tokens_(tokens) {}

  // The one that holds `token`, which its document may clip.
  TokenRange At(int64_t token) const {
    const TokenRange document = DocumentAt(documents_, token, tokens_);
    const int64_t begin = token - (token - document.begin) % length_;
    return {begin, document.end - begin < length_ ? document.end : begin + length_};
  }

  // How many segments that are like the one at `token`, which is its first, follow each other in a
  // document before `end`, that one included: 1 if it is clipped, or goes on behind `end`.
  int64_t Alike(int64_t token, int64_t end) const {
    const int64_t last = std::min(end, DocumentAt(documents_, token, tokens_).end);
    return std::max<int64_t>(1, (last - token) / length_);
  }

 private:
  const int64_t length_;
  const Documents& documents_;
  const int64_t tokens_;
};

}  // namespace ringmaster::attention
