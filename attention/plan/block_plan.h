#pragma once

#include <cstdint>
#include <vector>

#include "attention/plan/options.h"
#include "attention/plan/plan.h"

// A mask's part of AttentionPlan.
namespace ringmaster::attention {

// AttentionPlan::Runs: rows of pieces of blocks that a query of another range sees. A rank's own
// rows are at hand, in whichever of its ranges.
std::vector<RowRun> BlockRuns(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                              int from, int to);

// Pairs of a query of `rank` and a key it sees, over all heads.
double BlockPairs(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank);

}  // namespace ringmaster::attention
