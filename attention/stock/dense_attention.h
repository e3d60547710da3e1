#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "attention/stock/dropout_mask.h"

namespace ringmaster::attention {

// A batch of dense attention problems, as far as the operator knows them:
//   q, out, dout  [B, G, M, D]
//   k, v          [B, G, K, D]
//   lse           [B, G, M]
// q, k, v, out and dout have the type ComputeType gives, lse has fp32 (fp64 for fp64);
// inputs are contiguous, results only within a row; no size is zero. Causal: the last M keys are
// the queries' own, query m sees keys 0..K-M+m; then M <= K.
struct DenseShape {
  at::DeviceType device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // of the caller's tensors
  int64_t groups = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  bool causal = false;
};

// The type in which a problem of this shape is computed: fp64 and fp32 as they are; fp16 and bf16
// in fp32, so that nothing but the final output is rounded, unless the device has a fused kernel
// for the shape that accumulates in fp32 itself and is worth it.
at::ScalarType ComputeType(const DenseShape& shape);

struct DenseOutput {
  at::Tensor out;
  at::Tensor lse;
};

// `scale` is any finite number. Needs no memory of M * K, but a bounded workspace.
DenseOutput DenseForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                         double scale);

struct DenseGradients {
  at::Tensor dq;
  at::Tensor dk;
  at::Tensor dv;
};

// The gradient of one softmax of which these keys are only some: `lse` is of all keys, and `out` is
// what dout is multiplied with, the output of all keys for the exact gradient.
DenseGradients DenseBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             bool causal, double scale);

// The same two out of matrix products, for devices, types and shapes that no fused kernel takes,
// and for dropout, which none knows as it is here; `dropout` may be null. Queries that `alone`
// marks [B, G, M], if it is given, have no gradient but that of v.
DenseOutput BlockedForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           bool causal, double scale, const DropoutMask* dropout = nullptr);
DenseGradients BlockedBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                               bool causal, double scale, const DropoutMask* dropout = nullptr,
                               const at::Tensor& alone = {});

}  // namespace ringmaster::attention
