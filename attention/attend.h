#pragma once

#include <ATen/core/Tensor.h>

#include "attention/passes.h"

namespace ringmaster::attention {

// The two passes of a call as one differentiable function of q, k, v and the gates, which are
// undefined without any: what the operators are made of. Throws c10::Error and ExchangeError.
AttentionOutput Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Call call,
                       const at::Tensor& log_gates = {});

}  // namespace ringmaster::attention
