#pragma once

#include "attention/passes.h"

// The passes out of LibTorch's own operations, part by part: any device, dtype and head dimension,
// both mixing gradients. Contracts as of Forward and Backward, which call them.
namespace ringmaster::attention {

AttentionOutput StockForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, Saved* saved, const at::Tensor& log_gates);
DenseGradients StockBackward(const Call& call, const Saved& saved, const at::Tensor& dout,
                             at::Tensor* dlog_gates);

}  // namespace ringmaster::attention
