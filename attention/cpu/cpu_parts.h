#pragma once

#include <ATen/core/Tensor.h>

#include "attention/cpu/query_tile.h"
#include "attention/parts/rank_parts.h"

// Parts in fp32 or fp64 on the CPU, problem by problem: a thread gathers one problem's rows into
// memory that its caches hold, and merges, or adds, what comes out where it belongs. Bits do not
// depend on the number of threads. In all of these tensors are [B, T, H, D] with elements of a row
// side by side.
namespace ringmaster::attention {

// The code for this CPU, as far as LibTorch's own would use it; null where there is none.
const TileCode* CpuTiles();

// q, k and v are of one type, and of any that the sums, fp32 or fp64, hold. Merges as MergeRows
// does.
void ForwardOnCpu(const TileCode& code, const Part& part, double scale, const at::Tensor& q,
                  const at::Tensor& k, const at::Tensor& v, const at::Tensor& merged_out,
                  const at::Tensor& merged_lse);

struct CpuBackward {
  const at::Tensor &dout, &q, &k, &v;  // of one type, as in forward
  const at::Tensor &out, &lse;         // of the whole softmax, in the type of all sums
  const at::Tensor &dq, &dk, &dv;      // in that type, to be added to
};
void BackwardOnCpu(const TileCode& code, const Part& part, double scale,
                   const CpuBackward& tensors);

}  // namespace ringmaster::attention
