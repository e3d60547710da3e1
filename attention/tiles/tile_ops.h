#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "attention/tiles/placed_tiles.h"

// The kernels over lists of tiles, of rows that travel, of dropout and of positions as operators of
// LibTorch: schemas are declared here, kernels are registered by whatever brings them.
// libringmaster_cuda.so registers those of attention/kernels when it is loaded; without it there
// are none. Asynchronous on the current stream. Thread-safe once the kernels are registered. Throw
// c10::Error.
namespace ringmaster::attention {

// Empty, or why no kernels take tensors of this one's device.
std::string WhyNoTileKernels(const at::Tensor& q);

// bf16 or fp16, head_dim contiguous, all else as kernels::Operand wants it.
struct TileInputs {
  at::Tensor q;       // [B, T, H, D]
  at::Tensor k;       // [B, T, Hkv, D]
  at::Tensor v;       // [B, T, Hkv, D]
  at::Tensor pool_k;  // [B, rows of the pool, 1, D]
  at::Tensor pool_v;  // [B, rows of the pool, 1, D]
  std::vector<int64_t> steps;
  double scale = 1;
};

// All contiguous.
struct TileOutputs {
  at::Tensor out;        // [B, T, H, D], of the type of q
  at::Tensor lse;        // [B, T, H] fp32
  at::Tensor rest;       // [B, T, H, D] int8, kernels/rest.h; empty: nobody wants it
  at::Tensor part_outs;  // [B, parts, D] fp32
  at::Tensor part_lses;  // [B, parts] fp32
};

// Writes the softmax of each query over the keys that its tile sees to where PlacedTiles::slots
// says.
void TileForward(const TileInputs& inputs, const PlacedTiles::Queries& lists,
                 const at::Tensor& slots, const TileOutputs& outputs);

// The same of PlacedTiles::last, with merge_begin: merges the parts that are there.
void TileForwardLast(const TileInputs& inputs, const PlacedTiles& lists,
                     const TileOutputs& outputs);

// Merges the parts of each of PlacedTiles::mix_places into out and lse.
void TileMix(const PlacedTiles& lists, const TileOutputs& outputs);

// What TileBackward's sums of scores and of their gradients begin with (kernels::BackwardProblem),
// out of the output's gradient and the output, contiguous [B, T, H, D], the output with its rest,
// and `lse` [B, T, H], of all keys; +-inf takes a query out.
at::Tensor TileStarts(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& rest,
                      const at::Tensor& lse, double scale);

// Factors of probabilities (kernels/dropout.h), [G, M, K] contiguous, fp32 or fp64, out of Philox
// keys [G] and of tokens of queries [G, M] and of keys [G, K], all int64.
void DropoutFactors(const at::Tensor& philox_keys, const at::Tensor& queries,
                    const at::Tensor& keys, uint64_t dropped_below, double kept,
                    const at::Tensor& factors);

// Rotary positions (kernels/rotate.h) of x [B, N, H, D], bf16 or fp16, by fp32 tables of N rows of
// D / 2; all are contiguous, and `out` is as x and not x.
void Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, double direction,
            const at::Tensor& out);

// fp32, head_dim contiguous.
struct TileSums {
  // Of the tokens of q, k and v from `begin` on. dk and dv may have none where nothing is summed.
  at::Tensor dq, dk, dv;
  int64_t begin = 0;
  // Of the pool's shape.
  at::Tensor pool_dk, pool_dv;
};

// Where gradients of keys end, of the shape and type of k; passes want them contiguous.
struct FinishedKeys {
  at::Tensor dk, dv;
};

// Adds one pass's gradients to the sums; what becomes of those of keys, the lists say, and
// `key_sums` is PlacedTiles', `starts` are TileStarts of `dout`, an operand of q's shape.
// Deterministic: the same bits every time, by slower kernels, which want lists for it.
void TileBackward(const TileInputs& inputs, const at::Tensor& dout, const at::Tensor& starts,
                  const PlacedTiles::Backward& lists, const at::Tensor& key_sums,
                  bool deterministic, const TileSums& sums, const FinishedKeys& finished);

// Packs the rows at `places` (a list of PlacedTiles::Messages) of k and v [B, T, Hkv, D] into
// `message` [rows, 2, B, D], of one two-byte type.
void TilePackRows(const at::Tensor& k, const at::Tensor& v, const at::Tensor& places,
                  const at::Tensor& message);

// Adds gradients that come back, fp32 messages of the kept rows and of those that were sent, to the
// sums of the rank's own keys, fp32 [B, T, Hkv, D]. Where `finished` is defined the totals go
// there, rounded, and the sums stay what they are. The same bits every time.
void TileAddRows(const PlacedTiles::Messages& lists, const at::Tensor& kept,
                 const at::Tensor& returned, const at::Tensor& dk_sums, const at::Tensor& dv_sums,
                 const FinishedKeys& finished);

}  // namespace ringmaster::attention
