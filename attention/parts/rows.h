#pragma once

#include <ATen/core/Tensor.h>

#include "attention/parts/row_set.h"

namespace ringmaster::attention {

// A row set made ready for tensors of `heads` heads on a device: on the CPU the runs themselves
// drive the loops, on other devices an index tensor is made once. Borrows the set. Immutable value;
// thread-compatible.
class PlacedRows {
 public:
  PlacedRows(const RowSet& set, int64_t heads, at::Device device);

  const RowSet& set() const { return *set_; }
  // Numbers token * heads + head of the rows, int64 on the device; undefined on the CPU.
  const at::Tensor& index() const { return index_; }
  size_t bytes() const { return index_.defined() ? index_.nbytes() : 0; }

 private:
  const RowSet* set_;
  at::Tensor index_;
};

// In all of these `whole` is a [B, T, H, D] tensor of any strides but 1 in its last dimension. On
// the CPU the bits do not depend on the number of threads.

// The rows in `dtype`, contiguous [B, groups, rows, D].
at::Tensor GatherRows(const at::Tensor& whole, const PlacedRows& rows, at::ScalarType dtype);

// Copies the rows of a set of one group into `packed` [B, rows, D], any strides but 1 in its last
// dimension, same dtype.
void PackRows(const at::Tensor& whole, const PlacedRows& rows, const at::Tensor& packed);

// Adds `values` [B, groups, rows, D] to the rows of `whole`, both in the accumulation type (fp32 or
// fp64) on the CPU. Any strides but 1 in the last dimension.
void AddRows(const at::Tensor& values, const PlacedRows& rows, const at::Tensor& whole);

// Merges a part's softmax into a running one: `out` and `lse` [B, groups, rows (, D)] are the
// part's, of any strides but 1 in out's last dimension; `merged_out` [B, T, H, D] and `merged_lse`
// [B, T, H] hold the softmax of the parts before it and are contiguous, in the accumulation type.
// Rows no part has reached hold 0 and -inf. The set is distinct.
void MergeRows(const at::Tensor& out, const at::Tensor& lse, const PlacedRows& rows,
               const at::Tensor& merged_out, const at::Tensor& merged_lse);

// The log denominators at the rows: [B, groups, rows] of `merged_lse` [B, T, H], contiguous.
at::Tensor GatherSums(const at::Tensor& merged_lse, const PlacedRows& rows);

}  // namespace ringmaster::attention
