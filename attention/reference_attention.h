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

// Where a model of the inputs' own precision rounds to it, beside each output.
enum class Rounding {
  // P before it meets V.
  kProbabilities,
  // As fused kernels do for one list of keys: the gradients of the scores as well, before they meet
  // Q and K, and dout * out is taken of the output that went downstream.
  kFused,
  // As they do branch by branch: the probabilities of each branch as parts of its largest, whose
  // outputs merge unrounded, and in the backward pass P and the gradients of the scores once for
  // each time that a branch shows a key. Not of masks, nor with dropout.
  kFusedBranches,
};

// The error that the inputs' own precision makes unavoidable: the same dense model with fp32
// accumulation, rounded to the inputs' dtype as `rounding` says, and one rounding of each output to
// that dtype (lse stays fp32). Where a softmax is all but one key's, its gradient is a small
// difference of large numbers; this model leaves the rounding of its sums there, the oracle avoids
// it.
ReferenceResult SamePrecisionReference(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const at::Tensor& dout,
                                       const AttentionPattern& pattern,
                                       Rounding rounding = Rounding::kProbabilities,
                                       const at::Tensor& log_gates = {},
                                       const AttentionDropout& dropout = {});

// max |x - reference| / (|reference| + rms(reference)) over all elements, in fp64. Positions where
// both are the same infinity count as equal; 0 for empty tensors, infinity where one
// is NaN; x and reference have one shape.
double RelativeError(const at::Tensor& x, const at::Tensor& reference);

}  // namespace ringmaster::attention
