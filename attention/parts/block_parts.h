#pragma once

#include "attention/parts/rank_parts.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"

namespace ringmaster::attention {

// MakeRankParts of a block mask. A rank's own tokens of a block lie beside each other and in order,
// so that all own keys are local, whatever ranges they are in; the pool holds the peers'.
// Neighbouring blocks of queries that see the same, or, causal, the same and themselves, are one
// problem; with gates, each pair of blocks is one.
RankParts MakeBlockParts(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                         int rank);

}  // namespace ringmaster::attention
