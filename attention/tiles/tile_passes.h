#pragma once

#include <string>

#include "attention/passes.h"
#include "attention/tiles/tile_lists.h"

// The passes by kernels over lists of tiles: all branches in a few launches, rows read where they
// lie, one merge. bf16 or fp16, sums in fp32. Heads are filled up with zeros to 64 or 128 columns,
// in copies that are saved instead of what was given; peers get a head's own columns. The same bits
// every time, but for gradients on a GPU where LibTorch is not told to use deterministic algorithms
// when the call is made. Contracts as of Forward and Backward, which call them, but that a row that
// is not finite, and that somebody sees, may spoil its neighbours.
namespace ringmaster::attention {

// Empty, or why a call is not for these kernels. `accumulate` is what the call sums in.
std::string WhyNotTiles(const at::Tensor& q, const AttentionPattern& pattern, double scale,
                        at::ScalarType accumulate);

// The shape of the lists for such a call's tensors, and for LibTorch's choice of algorithms now.
TileShape TileShapeOf(const at::Tensor& q, const at::Tensor& k);

AttentionOutput TilePassForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, Saved* saved);
DenseGradients TilePassBackward(const Call& call, const Saved& saved, const at::Tensor& dout);

}  // namespace ringmaster::attention
