#include "attention/alone.h"

#include <ATen/ops/full.h>

#include <limits>

#include "attention/rows.h"

namespace ringmaster::attention {

void GiveAlone(const PlacedParts& parts, const at::Tensor& dout, const at::Tensor& sums,
               const at::Tensor& dv) {
  const PlacedRows& alone = parts.alone();
  const int64_t rows = alone.set().rows();
  if (rows > 0) {
    AddRows(GatherRows(dout, alone, sums.scalar_type()), parts.alone_keys(), dv);
    AddRows(at::full({dout.size(0), 1, rows, 1}, std::numeric_limits<double>::infinity(),
                     sums.options()),
            alone, sums.unsqueeze(-1));
  }
}

}  // namespace ringmaster::attention
