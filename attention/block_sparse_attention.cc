#include "attention/block_sparse_attention.h"

#include "attention/attend.h"
#include "attention/passes.h"

namespace ringmaster::attention {

AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options) {
  return Attend(q, k, v, MakeCall(q, k, v, options));
}

AttentionOutput BlockSparseAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const BlockSparseAttentionOptions& options,
                                     const ShardMap& map, GroupedExchange* exchange) {
  return Attend(q, k, v, MakeCall(q, k, v, options, map, exchange));
}

}  // namespace ringmaster::attention
