#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "attention/plan/block_patterns.h"
#include "attention/plan/options.h"
#include "ringmaster/v1/job.pb.h"

// AttentionSpec, whose comments say what its fields mean, as attention's own plain values and back:
// coordinator and workers must mean the same by it. Defaults and rules are the coordinator's.
namespace ringmaster {

// Causal, of one document. InvalidArgument when lengths and rates are not as many.
absl::StatusOr<attention::DilatedAttentionOptions> BranchesFromSpec(const v1::AttentionSpec& spec);
// Of `heads` query heads. InvalidArgument for an unknown kind.
absl::StatusOr<attention::BlockPattern> BlocksFromSpec(const v1::BlockSparseSpec& spec,
                                                       int64_t heads);

// All fields of branches, which are added to none.
void SetBranches(const attention::DilatedAttentionOptions& branches, v1::AttentionSpec& spec);
// All fields but the preset.
void SetBlocks(const attention::BlockPattern& blocks, v1::BlockSparseSpec& spec);

}  // namespace ringmaster
