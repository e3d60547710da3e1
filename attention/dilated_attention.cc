#include "attention/dilated_attention.h"

#include "attention/attend.h"
#include "attention/passes.h"

namespace ringmaster::attention {

AttentionOutput DilatedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const DilatedAttentionOptions& options,
                                 const AttentionDropout& dropout) {
  return Attend(q, k, v, MakeCall(q, k, v, options, dropout));
}

AttentionOutput DilatedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const DilatedAttentionOptions& options, const ShardMap& map,
                                 GroupedExchange* exchange, const AttentionDropout& dropout,
                                 Strategy strategy) {
  return Attend(q, k, v, MakeCall(q, k, v, options, map, exchange, dropout, strategy));
}

}  // namespace ringmaster::attention
