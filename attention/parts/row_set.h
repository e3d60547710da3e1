#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ringmaster::attention {

// Rows of one head at tokens first, first + step, ..., `count` of them.
struct Run {
  int64_t first = 0;
  int64_t step = 1;
  int64_t count = 0;
  int64_t head = 0;

  friend bool operator==(const Run&, const Run&) = default;
};

// Rows of a [B, T, H, D] tensor, in groups of equally many: each group is the queries, or the keys,
// of one dense problem of a batch of such. Immutable once made.
struct RowSet {
  std::vector<Run> runs;
  // Where each group's runs begin in `runs`; one more entry than groups.
  std::vector<size_t> group_begin = {0};
  int64_t rows_per_group = 0;
  // No row lies in two groups.
  bool distinct = true;

  int64_t groups() const { return static_cast<int64_t>(group_begin.size()) - 1; }
  int64_t rows() const { return groups() * rows_per_group; }
  size_t bytes() const { return runs.size() * sizeof(Run) + group_begin.size() * sizeof(size_t); }
};

}  // namespace ringmaster::attention
