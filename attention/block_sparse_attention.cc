#include "attention/block_sparse_attention.h"

#include <c10/util/Exception.h>

#include <utility>

#include "attention/attend.h"
#include "attention/passes.h"

namespace ringmaster::attention {
namespace {

void CheckGates(const at::Tensor& q, const BlockSparseAttentionOptions& options,
                const at::Tensor& log_gates) {
  TORCH_CHECK_VALUE(
      options.gated == log_gates.defined(), "the mask is ",
      options.gated ? "gated and log_gates are not given" : "not gated and log_gates are given");
  if (!options.gated) {
    return;
  }
  const int64_t pairs = options.mask.Pairs();
  TORCH_CHECK_VALUE(
      log_gates.dim() == 2 && log_gates.size(0) == q.size(0) && log_gates.size(1) == pairs &&
          at::isFloatingType(log_gates.scalar_type()) && log_gates.device() == q.device(),
      "log_gates must be [", q.size(0), ", ", pairs, "], on the device of q; they are ",
      log_gates.scalar_type(), " ", log_gates.sizes(), " on ", log_gates.device());
}

AttentionOutput Gated(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Call call,
                      const BlockSparseAttentionOptions& options, const at::Tensor& log_gates) {
  CheckGates(q, options, log_gates);
  return Attend(q, k, v, std::move(call), log_gates);
}

}  // namespace

AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options,
                                     const at::Tensor& log_gates, const AttentionDropout& dropout) {
  return Gated(q, k, v, MakeCall(q, k, v, options, dropout), options, log_gates);
}

AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options,
                                     const ShardMap& map, GroupedExchange* exchange,
                                     const at::Tensor& log_gates, const AttentionDropout& dropout,
                                     Strategy strategy) {
  return Gated(q, k, v, MakeCall(q, k, v, options, map, exchange, dropout, strategy), options,
               log_gates);
}

}  // namespace ringmaster::attention
