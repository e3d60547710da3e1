#pragma once

#include <ATen/core/Tensor.h>

#include "attention/dropout.h"
#include "attention/exchange/exchange.h"
#include "attention/output.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// Dilated attention over a whole sequence, or each of its documents, differentiable in q, k and v
// through autograd.
//   q     [B, N, H, D]
//   k, v  [B, N, Hkv, D], H a multiple of Hkv; query head j reads key/value head j / (H / Hkv)
// All of one floating dtype on one CPU or CUDA device, any strides. Accumulation is in fp32 (fp64
// for fp64 inputs and for sequences of up to 256 tokens) with one rounding of each output; no
// O(N^2) memory. The gradient of `out` at positions that no branch covers is ignored whatever it
// holds; at queries that see no key but their own it goes to v alone, q gets zero and so does k,
// but for rounding where others see this key. The same inputs give the same bits on the CPU for one
// number of threads, and on a GPU where LibTorch is told to use deterministic algorithms (not only
// to warn, where its own fused backward pass is at work). With dropout all is done by products of matrices: no fused kernel knows it.
// Throws c10::Error (ValueError) naming the argument when shapes, dtypes or options do not fit.
// Thread-safe: concurrent calls share nothing but a bounded cache of index plans.
AttentionOutput DilatedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const DilatedAttentionOptions& options,
                                 const AttentionDropout& dropout = {});

// The same function of a sequence that the ranks of `exchange` hold together as `map` says: q, k
// and v are this rank's local tokens in the map's local order, and so is the result. Every rank of
// the group must make the same sequence of calls, and run backward for the same ones in the same
// order, also a rank without tokens. `exchange` is borrowed until backward has run or the graph is
// gone; it may be null when the map has one rank. Results do not depend on the order in which
// messages arrive. What travels is as `strategy` and AttentionPlan say, the same on all ranks.
// Throws ExchangeError when a peer is lost, in backward as well.
AttentionOutput DilatedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const DilatedAttentionOptions& options, const ShardMap& map,
                                 GroupedExchange* exchange, const AttentionDropout& dropout = {},
                                 Strategy strategy = Strategy::kGrouped);

}  // namespace ringmaster::attention
