#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/dropout.h"
#include "attention/exchange/exchange.h"
#include "attention/output.h"
#include "attention/parts/placed_parts.h"
#include "attention/plan/head_shares.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"
#include "attention/stock/dense_attention.h"

namespace ringmaster::attention {

// Sequences up to here are summed in fp64 whatever their dtype: it costs nothing yet, and where
// queries see few keys a gradient can cancel to fewer digits than fp32 holds.
constexpr int64_t kMaxShortTokens = 256;

// One call of an operator on one rank, without its tensors.
struct Call {
  std::shared_ptr<const PlacedParts> parts;
  GroupedExchange* exchange = nullptr;  // null on a ring of one
  // Where ranks swap tokens for heads (head_parallel.h), instead of the parts: who has which, and
  // the call for this rank's, null if it has none.
  std::shared_ptr<const HeadShares> shares;
  std::shared_ptr<const Call> own_heads;
  double scale = 1;
  MixGradient mix_gradient = MixGradient::kExact;
  int branches = 0;
  AttentionDropout dropout;  // on: by products of matrices alone
  // Type of all sums: fp32, or fp64.
  at::ScalarType accumulate = at::kFloat;
  // Of the dK and dV partials between ranks, and of lse: fp32, or fp64 for fp64 inputs.
  at::ScalarType wire = at::kFloat;
  // Without shares: empty when kernels over tiles do it (tile_passes.h), else why stock operations
  // do. With them the call for own heads says so.
  std::string why_not_tiles;

  bool by_tiles() const { return shares == nullptr && why_not_tiles.empty(); }
};

// What backward needs of forward.
struct Saved {
  at::Tensor q, k, v;
  // The output, rounded only where backward's kernels want it so, one for each branch for the
  // detached gradient; of kernels over tiles the rounded one and what rounding left over.
  std::vector<at::Tensor> outs;
  at::Tensor lse;  // in the accumulation type
  // Rows received from the peers and kept for own later ranges: [rows, 2 (K, V), B, D]. Kept rather
  // than exchanged again: only selected rows travel, and where memory is short a layer's activations
  // are not kept at all, so that its forward pass, exchange and all, is run again.
  at::Tensor pool;
  at::Tensor log_gates;  // undefined without gates
};

// Checks arguments and finds the parts; the first is for a whole sequence on one rank. Throws
// c10::Error naming what does not fit.
Call MakeCall(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttentionPattern& pattern, const AttentionDropout& dropout = {});
Call MakeCall(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttentionPattern& pattern, const ShardMap& map, GroupedExchange* exchange,
              const AttentionDropout& dropout = {}, Strategy strategy = Strategy::kGrouped);

// For people: what computes attention of queries like q over a sequence of `tokens`, with dropout
// or without, and why not by tiles.
std::string DescribeExecutor(const at::Tensor& q, const AttentionPattern& pattern, int64_t tokens,
                             bool dropout = false);

// The two passes of a call without autograd, for the operators (attend.h) and for programs
// whose ranks share one process: on CUDA the autograd engine runs all ranks' backward in one
// thread, where they would wait for each other. Throw ExchangeError as DilatedAttention does. No
// message is in flight when they return or throw. The gates, and the place for their gradient, are
// as BlockSparseAttention's (block_sparse_attention.h) and wanted by calls of a gated mask only.
AttentionOutput Forward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, Saved* saved, const at::Tensor& log_gates = {});
DenseGradients Backward(const Call& call, const Saved& saved, const at::Tensor& dout,
                        at::Tensor* dlog_gates = nullptr);

}  // namespace ringmaster::attention
