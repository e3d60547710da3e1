#pragma once

#include <ATen/core/Tensor.h>

#include "attention/cpu/query_tile.h"
#include "attention/parts/rank_parts.h"

// Parts in fp32 on the CPU, problem by problem: a thread gathers one problem's rows into memory
// that its caches hold, and merges, or adds, what comes out where it belongs. Bits do not depend on
// the number of threads. In all of these tensors are [B, T, H, D] with elements of a row side by
// side.
namespace ringmaster::attention {

// The code for this CPU, as far as LibTorch's own would use it; null where there is none.
const TileCode* CpuTiles();

// q, k and v are fp32, bf16 or fp16. Merges as MergeRows does, in fp32.
void ForwardOnCpu(const TileCode& code, const Part& part, double scale, const at::Tensor& q,
                  const at::Tensor& k, const at::Tensor& v, const at::Tensor& merged_out,
                  const at::Tensor& merged_lse);

struct CpuBackward {
  const at::Tensor &dout, &q, &k, &v;  // of one type, as in forward
  const at::Tensor &out, &lse;         // fp32, of the whole softmax
  const at::Tensor &dq, &dk, &dv;      // fp32, to be added to
};
void BackwardOnCpu(const TileCode& code, const Part& part, double scale,
                   const CpuBackward& tensors);

}  // namespace ringmaster::attention
