#pragma once

#include <ATen/core/Tensor.h>

#include "attention/parts/row_set.h"

// rows.h out of stock tensor operations, for devices other than the CPU, and for rows that have no
// set; index as PlacedRows::index().
namespace ringmaster::attention {

at::Tensor RowIndex(const RowSet& set, int64_t heads, at::Device device);
at::Tensor GatherOnDevice(const at::Tensor& whole, const at::Tensor& index);  // [B, rows, D]
void GatherOnDevice(const at::Tensor& whole, const at::Tensor& index, const at::Tensor& to);
void AddOnDevice(const at::Tensor& values, const at::Tensor& index, const at::Tensor& whole);
void MergeOnDevice(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& index,
                   const at::Tensor& merged_out, const at::Tensor& merged_lse);

}  // namespace ringmaster::attention
