#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "attention/parts/rank_parts.h"

// Queries that several branches select, as tiles that see the keys of all of them at once: nothing
// is left to merge, and fewer tiles begin and end.
namespace ringmaster::attention {

// A run and the number of its first row among those of its group.
struct Span {
  Run run;
  int64_t begin = 0;
};
std::vector<Span> SpansOf(const RowSet& set, int64_t group);

// Rows of problem `group` of a part: row i of a run is query first + i * step of the problem's.
struct ProblemRows {
  const Part* part = nullptr;
  int64_t group = 0;
  int64_t first = 0;
  int64_t step = 1;
};

// Key i of `keys` is visible to row j of those that begin at row `at` when i <= step * j + this.
int64_t DiagonalOf(const ProblemRows& rows, int64_t at, const Span& keys);

// Queries of one head and all problems that they are in.
struct JointRun {
  Run rows;
  std::vector<ProblemRows> problems;
};

// Of each of a run's problems the keys.
using ProblemKeys = std::vector<std::pair<const ProblemRows*, std::vector<Span>>>;
ProblemKeys KeysOf(const JointRun& run);

struct JointRuns {
  std::vector<JointRun> runs;
  // Those whose queries are all in `runs`, the base among them.
  std::set<int> branches;
};

// The queries of branch `base`, which covers every place, cut so that those of a run are in the
// same problems of the branches joined to it: `count` of those, at most, whose rates divide one
// another and whose keys are all at hand. Without a count as many as make the pass shortest, by
// what tiles and the blocks of keys that they meet were measured to take: tiles of a rate see wide
// stretches of the keys of lower ones, of which more are behind some of their queries. `head_dim`
// is 64 or 128. Of `steps`, which runs have anyhow, and the steps of longer runs in the result
// there are at most `most_steps`.
JointRuns JoinBranches(const RankParts& parts, int base, int head_dim, std::optional<int> count,
                       const std::set<int64_t>& steps, size_t most_steps);

}  // namespace ringmaster::attention
