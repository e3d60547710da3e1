#pragma once

#include <ATen/core/Tensor.h>

#include "attention/parts/placed_parts.h"

namespace ringmaster::attention {

// A query that sees only its own key has v for its output whatever q and k are: all of dout goes
// to v. By the products of a backward pass dq and dk would be a difference of two equal numbers,
// and so their rounding. The log denominators `sums` [B, T, H] with such queries' set to infinity,
// which takes them out of the products: a copy, contiguous.
at::Tensor WithoutAlone(const PlacedParts& parts, const at::Tensor& sums);

// Adds such rows of dout [B, T, H, D] to dv [B, T, Hkv, D], which has the type of all sums.
void GiveAlone(const PlacedParts& parts, const at::Tensor& dout, const at::Tensor& dv);

}  // namespace ringmaster::attention
