#include "attention/stock/dense_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
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

// The fused kernels know causal problems of as many queries as keys only.
DenseOutput FusedForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                         double scale) {
  if (q.device().is_cpu()) {
    const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
        q, k, v, /*dropout_p=*/0.0, causal, /*attn_mask=*/{}, scale);
    return {out, lse};
  }
  return CudnnForward(q, k, v, causal, scale);
}

DenseGradients FusedBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             bool causal, double scale) {
  if (q.device().is_cpu()) {
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, lse, /*dropout_p=*/0.0, causal, /*attn_mask=*/{}, scale);
    return {dq, dk, dv};
  }
  return CudnnBackward(dout, q, k, v, out, lse, causal, scale);
}

// A causal problem in two: the keys before the queries' own, and these.
struct Split {
  Split(const at::Tensor& q, const at::Tensor& x)
      : size(x.size(2) - q.size(2)),
        before(x.narrow(2, 0, size)),
        own(x.narrow(2, size, q.size(2))) {}

  int64_t size;
  at::Tensor before, own;
};

DenseOutput SplitForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         double scale) {
  const Split keys(q, k), values(q, v);
  const DenseOutput before = FusedForward(q, keys.before, values.before, /*causal=*/false, scale);
  const DenseOutput own = FusedForward(q, keys.own, values.own, /*causal=*/true, scale);
  const at::Tensor lse = at::logaddexp(before.lse, own.lse);
  const auto weighted = [&](const DenseOutput& part) {
    return part.out.to(lse.scalar_type()).mul((part.lse - lse).exp_().unsqueeze(-1));
  };
  return {weighted(before).add_(weighted(own)), lse};
}

DenseGradients SplitBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             double scale) {
  const Split keys(q, k), values(q, v);
  const DenseGradients before = FusedBackward(dout, q, keys.before, values.before, out, lse,
                                              /*causal=*/false, scale);
  const DenseGradients own = FusedBackward(dout, q, keys.own, values.own, out, lse,
                                           /*causal=*/true, scale);
  const auto sums = lse.scalar_type();
  return {before.dq.to(sums) + own.dq.to(sums), at::cat({before.dk, own.dk}, 2),
          at::cat({before.dv, own.dv}, 2)};
}

// Whether only products of matrices take the problem.
bool IsBlocked(const at::Tensor& q) { return !q.device().is_cpu() && !IsHalf(q.scalar_type()); }

}  // namespace

at::ScalarType ComputeType(const DenseShape& shape) {
  if (!IsHalf(shape.dtype)) {
    return shape.dtype;
  }
  // Those of the smallest problem that the kernels will see.
  const int64_t before = shape.causal ? shape.keys - shape.queries : 0;
  const int64_t keys = before > 0 ? std::min(before, shape.queries) : shape.keys;
  const bool fused = shape.device == at::kCUDA && keys >= kMinFusedKeys &&
                     shape.groups <= kMaxFusedGroups && shape.head_dim % 8 == 0 &&
                     shape.head_dim <= 128;
  return fused ? shape.dtype : at::kFloat;
}

DenseOutput DenseForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                         double scale) {
  const PositiveScale positive(q, scale);
  if (IsBlocked(q)) {
    return BlockedForward(q, k, v, causal, scale);
  }
  return causal && q.size(2) < k.size(2) ? SplitForward(positive.q, k, v, positive.factor)
                                         : FusedForward(positive.q, k, v, causal, positive.factor);
}

DenseGradients DenseBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             bool causal, double scale) {
  const PositiveScale positive(q, scale);
  if (IsBlocked(q)) {
    return BlockedBackward(dout, q, k, v, out, lse, causal, scale);
  }
  const auto [dq, dk, dv] =
      causal && q.size(2) < k.size(2)
          ? SplitBackward(dout, positive.q, k, v, out, lse, positive.factor)
          : FusedBackward(dout, positive.q, k, v, out, lse, causal, positive.factor);
  return {positive.GradientOfGiven(dq), dk, dv};
}

}  // namespace ringmaster::attention
