#pragma once

#include <cstdint>

#include "attention/kernels/host_device.h"

// What the kernels over tiles work on: rows of tensors where they lie, and lists of which rows meet
// which. Dilated, block-sparse, ring and document attention are such lists.
namespace ringmaster::attention::kernels {

// Rows of q, k, v or dout: [batch, tokens, heads, head_dim], strides in elements, head_dim
// contiguous, pointers and strides multiples of 16 bytes. All rows are finite: those beside a
// tile's are read with them, and multiplied by zero.
struct Operand {
  const void* data = nullptr;
  int64_t batch = 1;
  int64_t tokens = 0;
  int64_t heads = 1;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// Consecutive rows of one head among the tokens that are congruent to `residue` modulo the step of
// a view: row i is token residue + (first + i) * step.
struct TileRows {
  int32_t view = 0;
  int32_t head = 0;
  int32_t residue = 0;
  int32_t first = 0;
};

// Where the first of `rows`, whose view has this step, lies among sums that begin at another token:
// at row `first_row` of residue `first_residue` of the same view, and not behind it.
struct RowOfSums {
  int32_t residue;
  int32_t row;
};
RINGMASTER_HOST_DEVICE RowOfSums RowInSums(const TileRows& rows, int32_t first_row,
                                           int32_t first_residue, int64_t step) {
  RowOfSums in = {rows.residue - first_residue, rows.first - first_row};
  if (in.residue < 0) {
    in.residue += static_cast<int32_t>(step);
    --in.row;
  }
  return in;
}

// Keys that a tile of queries sees: key i < count is visible to query j of the tile when
// i <= step * j + diagonal; so many keys come for each of the tile's queries, fewer than 2^16. In
// the backward pass the step is 1.
struct TileKeys {
  TileRows rows;
  int32_t count = 0;
  int32_t diagonal = 0;
  int32_t step = 1;
};
// A diagonal that hides nothing.
constexpr int32_t kAllVisible = int32_t{1} << 30;

// Queries and the keys that they see, keys[keys_begin .. keys_end) of the list. The forward pass
// numbers the queries of all tiles: these are first_row, first_row + 1, ...
struct Tile {
  TileRows rows;
  int32_t count = 0;
  int32_t keys_begin = 0;
  int32_t keys_end = 0;
  int64_t first_row = 0;
};

// Where a query's result goes whose token's head is in no other tile: it is the whole result, and
// no part to be merged.
constexpr uint32_t kWhole = 0xFFFFFFFF;

// Most queries of a tile, forward and backward, and most keys of a tile of keys; how many of either
// one consumer holds.
constexpr int TileRowsOf(int head_dim) { return head_dim == 64 ? 192 : 128; }
constexpr int kBackwardTileRows = 128;
constexpr int kTileKeys = 128;
constexpr int kRowsOfConsumer = 64;

// Logarithms of denominators are divided by the scale.
constexpr float kLeastScale = 0x1p-100f;

// Heads lie in pairs where each has two fp32 numbers: bulk copies are of 16 bytes.
RINGMASTER_HOST_DEVICE constexpr int64_t PairsOfHeads(int64_t heads) { return (heads + 1) / 2; }

// A way to read an operand: tokens that are `step` apart are neighbours.
struct View {
  Operand operand;
  int64_t step = 1;
};

// Most views of each kind in one call.
constexpr int kMaxViews = 16;

// Up to kTileKeys keys and the spans of queries that see them, queries[begin .. end) of the list:
// query i < count sees key j of the tile when j <= i + diagonal.
struct KeyTile {
  TileRows rows;
  int32_t count = 0;
  int32_t queries_begin = 0;
  int32_t queries_end = 0;
};

// What becomes of the gradients of a call's keys:
//   kAdd:    they are added to the sums.
//   kStore:  they are the sums, whatever was there before.
//   kFinish: with the sums, where there are any, they are rounded; kSumsBefore, kSumsAfter.
enum class KeyGradients { kAdd, kStore, kFinish };

// What a key's sums have to do with the call that finishes it, in bits: they hold part of what is
// rounded; they are added to later, and get all that is rounded.
constexpr uint8_t kSumsBefore = 1;
constexpr uint8_t kSumsAfter = 2;

}  // namespace ringmaster::attention::kernels
