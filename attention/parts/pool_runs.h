#pragma once

#include <cstdint>
#include <vector>

#include "attention/parts/rank_parts.h"
#include "attention/plan/plan.h"

// What the parts of all patterns are made with.
namespace ringmaster::attention {

// A range of a rank and the local number of its first token.
struct LocalRange {
  TokenRange tokens;
  int64_t local_begin = 0;
};
std::vector<LocalRange> LocalRanges(const ShardMap& map, int rank);

// Where the rows of one run of the plan lie in the pool.
struct PoolRun {
  int from = 0;
  RowRun run;
  int64_t begin = 0;
};

// Fills in the messages, the sizes and the tokens of `parts` as the plan says. The pool's rows, in
// order.
std::vector<PoolRun> AddMessages(const AttentionPlan& plan, int rank, RankParts* parts);

// Appends a group, of `rows` in all.
void AddGroup(RowSet* set, const Run* runs, size_t size, int64_t rows);
// Makes the set's runs, of one row each, a group.
void CloseGroup(RowSet* set);

}  // namespace ringmaster::attention
