#pragma once

#include <ATen/core/Tensor.h>

#include "attention/dropout.h"
#include "attention/plan/options.h"

namespace ringmaster::attention {

// What the dense models below return. dq, dk and dv are undefined tensors when no dout was given.
struct ReferenceResult {
  at::Tensor out;         // [B, N, H, D]
  at::Tensor lse;         // [B, N, H]
  at::Tensor dq;          // [B, N, H, D]
  at::Tensor dk;          // [B, N, Hkv, D]
  at::Tensor dv;          // [B, N, Hkv, D]
  at::Tensor dlog_gates;  // [B, pairs], of a gated mask
};

// The oracle: dilated or block-sparse attention written down from its definition, in fp64 and
// O(N^2) memory, one softmax over the multiset union of the keys that the branches, or the mask,
// show to a query, each with its own dropout. Shares no code with the operators but the options and
// Philox. Arguments as there; `dout`
// [B, N, H, D] may be undefined. Results are fp64 on the CPU. REQUIRES: options and shapes fit.
ReferenceResult ReferenceAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& dout, const AttentionPattern& pattern,
                                   const at::Tensor& log_gates = {},
                                   const AttentionDropout& dropout = {});

// The error that the inputs' own precision makes unavoidable: the same dense model with fp32
// accumulation, P rounded to the inputs' dtype before P V, and one rounding of each output to that
// dtype (lse stays fp32). Where a softmax is all but one key's, its gradient is a small difference
// of large numbers; this model leaves the rounding of its sums there, the oracle avoids it. Fused
// backward kernels round twice more: they subtract dout * out of the output that went downstream,
// and tensor cores want the gradients of the scores in the inputs' dtype. `fused_backward` for
// them.
ReferenceResult SamePrecisionReference(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const at::Tensor& dout,
                                       const AttentionPattern& pattern, bool fused_backward = false,
                                       const at::Tensor& log_gates = {},
                                       const AttentionDropout& dropout = {});

// max |x - reference| / (|reference| + rms(reference)) over all elements, in fp64. Positions where
// both are the same infinity count as equal; 0 for empty tensors, infinity where one
// is NaN; x and reference have one shape.
double RelativeError(const at::Tensor& x, const at::Tensor& reference);

}  // namespace ringmaster::attention
