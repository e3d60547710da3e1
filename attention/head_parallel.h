#pragma once

#include <ATen/core/Tensor.h>

#include "attention/passes.h"

// The passes of a call whose ranks swap tokens for heads (Strategy::kHeads): each computes some
// heads of the whole sequence, as a ring of one would.
namespace ringmaster::attention {

AttentionOutput HeadParallelForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, Saved* saved);
DenseGradients HeadParallelBackward(const Call& call, const Saved& saved, const at::Tensor& dout);

}  // namespace ringmaster::attention
