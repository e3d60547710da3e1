#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>

#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention::kernels {

constexpr int kColumns = 64;  // of a box: 128 bytes, swizzled

// The two tensor maps of a view, [batch, first + i, residue, head, 64 elements]: one for residues
// below tokens mod step, whose rows are one more than those of the others. Coordinates beyond read
// as zeros.
struct ViewMaps {
  CUtensorMap longer;
  CUtensorMap shorter;
  // tokens mod step.
  int32_t longer_residues = 0;
};

// Maps whose boxes are `box_rows` rows of 64 elements. Empty, or what the driver said.
std::string MakeViewMaps(const View& view, int head_dim, int box_rows, ViewMaps* maps);

}  // namespace ringmaster::attention::kernels
