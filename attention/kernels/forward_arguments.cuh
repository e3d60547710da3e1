#pragma once

#include <stdint.h>

#include <limits>

#include "attention/kernels/tensor_maps.h"
#include "attention/kernels/tile_kernel.cuh"

namespace ringmaster::attention::kernels {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct ForwardArguments : TileArguments<Tile> {
  ViewMaps queries;
  ViewMaps keys;
  ViewMaps values;
  const TileKeys* key_list;
  Results results;
  int64_t query_steps[kMaxViews];
  int64_t tokens;
  int64_t heads;
  float scale_log2;
};

// A row's place, its token's head, in the first sequence.
__device__ inline int64_t PlaceOf(const ForwardArguments& arguments, const TileRows& rows,
                                  int row) {
  const int64_t token = rows.residue + (rows.first + row) * arguments.query_steps[rows.view];
  return token * arguments.heads + rows.head;
}

}  // namespace ringmaster::attention::kernels
