#pragma once

#include <ATen/core/Tensor.h>

#include "attention/dropout.h"
#include "attention/exchange/exchange.h"
#include "attention/output.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// Block-sparse attention: one softmax for each query over all keys of the blocks that the mask
// shows it, causal exactly so within the block of the query's own. Tensors, types, threads and
// errors as of DilatedAttention (dilated_attention.h); the mask's heads are those of the queries.
// The gradient of `out` at queries that see no key is ignored whatever it holds; no other row of q,
// k and v need be seen, but all must be finite.
//
// With a gated mask, `log_gates` are the logarithms of the gates, finite and of any floating type:
// [B, pairs], numbered as BlockMask::Pairs says; a mask of one head has one gate for all. They are
// added to the scores of their pairs and get a gradient, which is zero where causality hides a
// pair. Else undefined.
AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options,
                                     const at::Tensor& log_gates = {},
                                     const AttentionDropout& dropout = {});

// The same function of a sequence that the ranks of `exchange` hold together as `map` says, whose
// borders may lie within blocks. A mask with gates wants kGrouped. Ranks and errors as of
// DilatedAttention. Every rank gives all gates; their gradient is what its own queries owe, and
// that of the sequence the sum over the ranks.
AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options,
                                     const ShardMap& map, GroupedExchange* exchange,
                                     const at::Tensor& log_gates = {},
                                     const AttentionDropout& dropout = {},
                                     Strategy strategy = Strategy::kGrouped);

}  // namespace ringmaster::attention
