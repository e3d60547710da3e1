#include "attention/parts/device_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logaddexp.h>

#include "attention/parts/places.h"

namespace ringmaster::attention {
namespace {

// A view, or an error: a copy would swallow what is written to it.
at::Tensor Flat(const at::Tensor& whole) { return whole.view({whole.size(0), -1, whole.size(3)}); }

}  // namespace

at::Tensor RowIndex(const RowSet& set, int64_t heads, at::Device device) {
  at::Tensor index = at::empty({set.rows()}, at::kLong);
  int64_t* next = index.mutable_data_ptr<int64_t>();
  ForEachPlace(set, heads, [&](int64_t place) { *next++ = place; });
  return index.to(device);
}

at::Tensor GatherOnDevice(const at::Tensor& whole, const at::Tensor& index) {
  return whole.flatten(1, 2).index_select(1, index);
}

void GatherOnDevice(const at::Tensor& whole, const at::Tensor& index, const at::Tensor& to) {
  at::Tensor rows = to;
  at::index_select_out(rows, whole.flatten(1, 2), 1, index);
}

void AddOnDevice(const at::Tensor& values, const at::Tensor& index, const at::Tensor& whole) {
  Flat(whole).index_add_(1, index, values.flatten(1, 2).to(whole.scalar_type()));
}

void MergeOnDevice(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& index,
                   const at::Tensor& merged_out, const at::Tensor& merged_lse) {
  const at::Tensor all_outs = Flat(merged_out),
                   all_sums = merged_lse.view({merged_lse.size(0), -1});
  const at::Tensor part = lse.flatten(1, 2);
  const at::Tensor before = all_sums.index_select(1, index);
  // The part's share of the weight, and what is left. A sum's logarithm is rounded by more than a
  // share: shares made from it would not add up to one, and gradients are differences of what such
  // sums are of. `part` is finite, because it has at least one key for each of its queries.
  const at::Tensor take = (part - before).sigmoid_().unsqueeze(-1);
  const at::Tensor outs =
      all_outs.index_select(1, index).lerp_(out.flatten(1, 2).to(merged_out.scalar_type()), take);
  all_outs.index_copy_(1, index, outs);
  all_sums.index_copy_(1, index, at::logaddexp(before, part));
}

}  // namespace ringmaster::attention
