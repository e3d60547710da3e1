#pragma once

#include <ATen/core/Tensor.h>

#include "attention/passes.h"

namespace ringmaster::attention {

// The two passes of a call as one differentiable function of q, k and v: what the operators are
// made of. Throws c10::Error and ExchangeError.
AttentionOutput Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Call call);

}  // namespace ringmaster::attention
