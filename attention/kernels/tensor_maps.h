#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/kernels/tile_attention.h"

namespace ringmaster::attention::kernels {

// Columns of a box: of operands and of sums, 128 bytes, swizzled; of a pair of heads' starts.
constexpr int kColumns = 64;
constexpr int kSumColumns = 32;
constexpr int kStartColumns = 4;

// Two tensor maps for each view, [batch, first + i, residue, head, columns]: one for residues below
// tokens mod step, whose rows are one more than those of the others. Coordinates beyond read as
// zeros, and what is written there is dropped.
struct ViewMaps {
  CUtensorMap longer[kMaxViews];
  CUtensorMap shorter[kMaxViews];
  // tokens mod step.
  int32_t longer_residues[kMaxViews];
};

// Maps whose boxes are `box_rows` rows of kColumns elements. Empty, or what the driver said.
std::string MakeViewMaps(const std::vector<View>& views, int head_dim, int box_rows,
                         ViewMaps* maps);

// Maps of BackwardProblem::starts that belong to views of queries: head / 2 in place of the head.
std::string MakeStartMaps(const float* starts, const std::vector<View>& views, int box_rows,
                          ViewMaps* maps);

// Maps of sums that belong to views of queries, of kSumColumns elements, and where the first token
// of the sums lies in each: row `first_row` of residue `first_residue`.
struct SumMaps {
  ViewMaps views;
  int32_t first_row[kMaxViews];
  int32_t first_residue[kMaxViews];
};
std::string MakeSumMaps(const std::vector<Gradient>& sums, const std::vector<View>& views,
                        int head_dim, int box_rows, SumMaps* maps);

}  // namespace ringmaster::attention::kernels
