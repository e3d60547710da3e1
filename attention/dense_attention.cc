#include "attention/dense_attention.h"

#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

namespace ringmaster::attention {
namespace {

bool IsHalf(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

// Below this many keys a launch costs more than its work, and cuDNN refuses the shortest.
constexpr int64_t kMinFusedKeys = 128;
// cuDNN's limit on the second dimension of the problem.
constexpr int64_t kMaxFusedGroups = 65535;

// The fused kernels multiply the scores after they have put -inf at hidden keys, so the factor must
// be positive: a negative one moves to q, and zero makes q zero.
struct PositiveScale {
  PositiveScale(const at::Tensor& given, double scale)
      : q(scale > 0   ? given
          : scale < 0 ? given.neg()
                      : at::zeros_like(given)),
        factor(scale == 0 ? 1 : std::abs(scale)),
        sign(scale > 0   ? 1
             : scale < 0 ? -1
                         : 0) {}

  at::Tensor GradientOfGiven(const at::Tensor& dq) const {
    return sign > 0 ? dq : sign < 0 ? dq.neg() : at::zeros_like(dq);
  }

  at::Tensor q;
  double factor;
  int sign;
};

DenseOutput CudnnForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                         double scale) {
  const auto result = at::_scaled_dot_product_cudnn_attention(
      q, k, v, /*attn_bias=*/{}, /*compute_log_sumexp=*/true,
      /*dropout_p=*/0.0, causal, /*return_debug_mask=*/false, scale);
  // Some versions carry a trailing dimension of one.
  return {std::get<0>(result), std::get<1>(result).reshape({q.size(0), q.size(1), q.size(2)})};
}

DenseGradients CudnnBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             bool causal, double scale) {
  // No dropout, so the state of the random numbers is read by nobody.
  const at::Tensor unused = at::zeros({2}, q.options().dtype(at::kLong));
  const auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
      dout, q, k, v, out, lse.unsqueeze(-1), unused[0], unused[1], /*attn_bias=*/at::Tensor(),
      /*cum_seq_q=*/at::Tensor(), /*cum_seq_k=*/at::Tensor(), q.size(2), k.size(2),
      /*dropout_p=*/0.0, causal, scale);
  return {dq, dk, dv};
}

}  // namespace

at::ScalarType ComputeType(const DenseShape& shape) {
  if (!IsHalf(shape.dtype)) {
    return shape.dtype;
  }
  const bool fused = shape.device == at::kCUDA && shape.keys >= kMinFusedKeys &&
                     shape.groups <= kMaxFusedGroups && shape.head_dim % 8 == 0 &&
                     shape.head_dim <= 128;
  return fused ? shape.dtype : at::kFloat;
}

DenseOutput DenseForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                         double scale) {
  const PositiveScale positive(q, scale);
  if (q.device().is_cpu()) {
    const auto [out, lse] =
        at::_scaled_dot_product_flash_attention_for_cpu(positive.q, k, v, /*dropout_p=*/0.0, causal,
                                                        /*attn_mask=*/{}, positive.factor);
    return {out, lse};
  }
  if (IsHalf(q.scalar_type())) {
    return CudnnForward(positive.q, k, v, causal, positive.factor);
  }
  return BlockedForward(q, k, v, causal, scale);
}

DenseGradients DenseBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             bool causal, double scale) {
  const PositiveScale positive(q, scale);
  if (q.device().is_cpu()) {
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        dout, positive.q, k, v, out, lse, /*dropout_p=*/0.0, causal, /*attn_mask=*/{},
        positive.factor);
    return {positive.GradientOfGiven(dq), dk, dv};
  }
  if (IsHalf(q.scalar_type())) {
    const auto [dq, dk, dv] =
        CudnnBackward(dout, positive.q, k, v, out, lse, causal, positive.factor);
    return {positive.GradientOfGiven(dq), dk, dv};
  }
  return BlockedBackward(dout, q, k, v, out, lse, causal, scale);
}

}  // namespace ringmaster::attention
