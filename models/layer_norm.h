#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/layer_norm.h>

namespace ringmaster::models {

// Over the last dimension; every LayerNorm of the model has this epsilon.
inline at::Tensor LayerNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::layer_norm(x, weight.sizes(), weight, bias, /*eps=*/1e-5);
}

}  // namespace ringmaster::models
