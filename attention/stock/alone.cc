#include "attention/stock/alone.h"

#include <ATen/ops/full.h>

#include <limits>

#include "attention/parts/rows.h"

namespace ringmaster::attention {

at::Tensor WithoutAlone(const PlacedParts& parts, const at::Tensor& sums) {
  const at::Tensor without = sums.clone(at::MemoryFormat::Contiguous);
  const PlacedRows& alone = parts.alone().queries;
  if (const int64_t rows = alone.set().rows(); rows > 0) {
    AddRows(at::full({sums.size(0), 1, rows, 1}, std::numeric_limits<double>::infinity(),
                     sums.options()),
            alone, without.unsqueeze(-1));
  }
  return without;
}

void GiveAlone(const PlacedParts& parts, const at::Tensor& dout, const at::Tensor& dv) {
  const auto& [queries, keys] = parts.alone();
  if (queries.set().rows() > 0) {
    AddRows(GatherRows(dout, queries, dv.scalar_type()), keys, dv);
  }
}

}  // namespace ringmaster::attention
