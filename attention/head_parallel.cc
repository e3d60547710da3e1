#include "attention/head_parallel.h"

#include <ATen/ops/empty.h>

#include "attention/exchange/head_swap.h"

namespace ringmaster::attention {

AttentionOutput HeadParallelForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, Saved* saved) {
  const HeadShares& shares = *call.shares;
  const HeadSwap swap(shares, call.exchange);
  const std::vector<at::Tensor> own = swap.ToHeads({{q, shares.group()}, {k, 1}, {v, 1}});
  // A rank without heads has nothing to compute, and nothing to say.
  AttentionOutput output{own[0],
                         at::empty(own[0].sizes().slice(0, 3), q.options().dtype(call.wire))};
  if (call.own_heads != nullptr) {
    output = Forward(*call.own_heads, own[0], own[1], own[2], saved);
  } else if (saved != nullptr) {
    *saved = {};
  }
  // Log denominators travel beside the output, as elements of its type.
  const at::Tensor sums = output.lse.contiguous().unsqueeze(-1).view(q.scalar_type());
  const std::vector<at::Tensor> back =
      swap.ToTokens({{output.out, shares.group()}, {sums, shares.group()}});
  return {back[0], back[1].view(call.wire).squeeze(-1)};
}

DenseGradients HeadParallelBackward(const Call& call, const Saved& saved, const at::Tensor& dout) {
  const HeadShares& shares = *call.shares;
  const HeadSwap swap(shares, call.exchange);
  const at::Tensor own = swap.ToHeads({{dout, shares.group()}})[0];
  DenseGradients gradients{own, own, own};  // of no head
  if (call.own_heads != nullptr) {
    gradients = Backward(*call.own_heads, saved, own);
  }
  const std::vector<at::Tensor> back =
      swap.ToTokens({{gradients.dq, shares.group()}, {gradients.dk, 1}, {gradients.dv, 1}});
  return {back[0], back[1], back[2]};
}

}  // namespace ringmaster::attention
