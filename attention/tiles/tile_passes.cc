#include "attention/tiles/tile_passes.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>

#include "attention/exchange/far_rows.h"
#include "attention/kernels/tile_list.h"
#include "attention/tiles/placed_tiles.h"
#include "attention/tiles/tile_ops.h"

namespace ringmaster::attention {
namespace {

constexpr int64_t kMaxBatch = 65535;  // blocks of a launch
constexpr int64_t kMaxTokens = int64_t{1} << 30;
// A query may have a local and a far part in each branch.
constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;

// The fp32 sums of the backward pass are of one window: of a share of the sequence, where segments
// allow it, but enough to keep a GPU busy.
constexpr int64_t kMinWindowTokens = int64_t{1} << 16;
constexpr int64_t kMaxWindows = 4;

// Kernels know heads of 64 and 128; others are filled up with columns of zeros, which change no
// product, and results are cut.
constexpr int64_t kMaxHeadDim = 128;
int64_t KernelHeadDim(int64_t dim) { return dim <= 64 ? 64 : kMaxHeadDim; }

// The first `columns`, or the tensor itself.
at::Tensor Columns(const at::Tensor& x, int64_t columns) {
  return x.size(3) == columns ? x : x.narrow(3, 0, columns);
}

// Tensor maps want aligned rows; a size of one may come with any stride. What lies at `unused`
// places, if it is defined, may be anything: rows beside a tile are read with it and multiplied by
// zero.
at::Tensor AsOperand(const at::Tensor& x, const at::Tensor& unused = {}) {
  constexpr int64_t kAlignedElements = 8;
  const int64_t own = x.size(3), columns = KernelHeadDim(own);
  if (own < columns || unused.defined()) {
    const at::Tensor filled = at::empty({x.size(0), x.size(1), x.size(2), columns}, x.options());
    filled.narrow(3, 0, own).copy_(x);
    filled.narrow(3, own, columns - own).zero_();
    return unused.defined() ? filled.masked_fill_(unused, 0) : filled;
  }
  bool fits =
      x.stride(3) == 1 &&
      reinterpret_cast<uintptr_t>(x.const_data_ptr()) % (kAlignedElements * sizeof(uint16_t)) == 0;
  for (int i = 0; i < 3; ++i) {
    fits = fits && x.stride(i) > 0 && x.stride(i) % kAlignedElements == 0;
  }
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

// The pool's rows have their own columns, and must be there if these are to be filled up.
TileInputs Inputs(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& pool) {
  return {.q = q,
          .k = k,
          .v = v,
          .pool_k = AsOperand(PoolKeys(pool)),
          .pool_v = AsOperand(PoolValues(pool)),
          .steps = call.parts->tiles()->steps,
          .scale = call.scale};
}

std::string WhyNot(const DilatedAttentionOptions& options) {
  const auto branches = static_cast<int64_t>(options.branches.size());
  if (options.mix_gradient == MixGradient::kDetached && branches > 1) {
    return "detached mixing weights need the output of each branch";
  }
  // A view for each rate, one for single rows and one for the pool.
  if (branches + 2 > kernels::kMaxViews) {
    return c10::str(branches, " branches, more than ", kernels::kMaxViews - 2);
  }
  return "";
}

std::string WhyNot(const BlockSparseAttentionOptions& options) {
  return options.gated ? "the kernels know no gates" : "";
}

bool HasTooManyPairs(const BlockMask& mask, int64_t heads) {
  return mask.Pairs() > kMaxRows / (heads / mask.shape().heads);
}

}  // namespace

std::string WhyNotTiles(const at::Tensor& q, const AttentionPattern& pattern, double scale,
                        at::ScalarType accumulate) {
  const int64_t branches = Branches(pattern);
  if (q.scalar_type() != at::kBFloat16 && q.scalar_type() != at::kHalf) {
    return c10::str("the dtype is ", q.scalar_type(), ", not BFloat16 or Half");
  }
  if (accumulate != at::kFloat) {
    return "short sequences are summed in fp64";
  }
  if (q.size(3) > kMaxHeadDim) {
    return c10::str("the head dimension is ", q.size(3), ", above ", kMaxHeadDim);
  }
  if (!(static_cast<float>(scale) >= kernels::kLeastScale)) {
    return c10::str("the scale is ", scale, ", not 2^-100 or more");
  }
  if (std::string why_not =
          std::visit([](const auto& options) { return WhyNot(options); }, pattern);
      !why_not.empty()) {
    return why_not;
  }
  if (q.size(0) > kMaxBatch || q.size(1) >= kMaxTokens ||
      q.size(1) > kMaxRows / q.size(2) / std::max<int64_t>(branches, 1)) {
    return c10::str("q ", q.sizes(), " has more rows than the lists can number");
  }
  if (const auto* options = std::get_if<BlockSparseAttentionOptions>(&pattern);
      options != nullptr && HasTooManyPairs(options->mask, q.size(2))) {
    return "the mask has more pairs of blocks than the lists can number";
  }
  return WhyNoTileKernels(q);
}

TileShape TileShapeOf(const at::Tensor& q, const at::Tensor& k) {
  return {.tokens = q.size(1),
          .heads = static_cast<int>(q.size(2)),
          .kv_heads = static_cast<int>(k.size(2)),
          .head_dim = static_cast<int>(KernelHeadDim(q.size(3))),
          .deterministic = q.is_cpu() || at::globalContext().deterministicAlgorithms(),
          .window_tokens = std::max(kMinWindowTokens, q.size(1) / kMaxWindows)};
}

AttentionOutput TilePassForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, Saved* saved) {
  const PlacedTiles& tiles = *call.parts->tiles();
  const at::Tensor queries = AsOperand(q, tiles.no_query), keys = AsOperand(k, tiles.no_key),
                   values = AsOperand(v, tiles.no_key);
  const auto sums = q.options().dtype(at::kFloat);
  TileOutputs outputs{.out = at::empty(queries.sizes(), q.options()),
                      .lse = at::empty(q.sizes().slice(0, 3), sums)};
  // Of what nobody saves nothing is left over.
  outputs.rest = saved == nullptr ? at::empty({0}, q.options().dtype(at::kChar))
                                  : at::empty(queries.sizes(), q.options().dtype(at::kChar));
  if (tiles.no_query.defined()) {
    outputs.out.zero_();
    outputs.rest.zero_();
    outputs.lse.fill_(-std::numeric_limits<float>::infinity());
  }
  at::Tensor pool;
  if (q.numel() > 0) {
    outputs.part_outs = at::empty({q.size(0), tiles.parts, queries.size(3)}, sums);
    outputs.part_lses = at::empty({q.size(0), tiles.parts}, sums);
    FarRows rows(*call.parts, Columns(keys, k.size(3)), Columns(values, k.size(3)), call.exchange);
    // Local tiles see nothing of the pool, which is under way.
    const TileInputs inputs = Inputs(call, queries, keys, values, rows.pool().narrow(0, 0, 0));
    TileForward(inputs, tiles.local, tiles.slots, outputs);
    TileForwardLast(inputs, tiles, outputs);
    rows.Wait();
    if (tiles.far.tiles.numel() > 0) {
      TileForward(Inputs(call, queries, keys, values, rows.pool()), tiles.far, tiles.slots,
                  outputs);
    }
    TileMix(tiles, outputs);
    pool = rows.pool();
  }
  if (saved != nullptr) {
    *saved = {queries, keys, values, {outputs.out, outputs.rest}, outputs.lse, pool};
  }
  return {Columns(outputs.out, q.size(3)).contiguous(), outputs.lse};
}

namespace {

class BackwardPass {
 public:
  BackwardPass(const Call& call, const Saved& saved, const at::Tensor& dout)
      : call_(call),
        tiles_(*call.parts->tiles()),
        inputs_(Inputs(call, saved.q, saved.k, saved.v, saved.pool)),
        head_dim_(dout.size(3)),
        douts_(AsOperand(dout, tiles_.no_query)),
        starts_(TileStarts(douts_.contiguous(), saved.outs[0], saved.outs[1], saved.lse,
                           inputs_.scale)),
        owed_(
            at::zeros({saved.pool.size(0), saved.pool.size(1), saved.pool.size(2), saved.k.size(3)},
                      saved.pool.options().dtype(at::kFloat))),
        gradients_{at::empty(saved.q.sizes(), saved.q.options()),
                   at::empty(saved.k.sizes(), saved.k.options()),
                   at::empty(saved.k.sizes(), saved.k.options())} {}

  DenseGradients Run() {
    int64_t most = 0;
    bool sums_keys = tiles_.key_sums.numel() > 0;
    for (const PlacedTiles::Window& window : tiles_.windows) {
      most = std::max(most, window.tokens);
      sums_keys |= !window.finishes;
    }
    const auto room = [&](const at::Tensor& like, int64_t tokens) {
      return at::empty({like.size(0), tokens, like.size(2), like.size(3)}, owed_.options());
    };
    room_ = {room(inputs_.q, most), room(inputs_.k, sums_keys ? most : 0),
             room(inputs_.k, sums_keys ? most : 0)};
    for (const PlacedTiles::Window& window : tiles_.windows) {
      RunWindow(window);
    }
    call_.parts->SetKnownZeros(gradients_.dq, gradients_.dk);
    const auto own = [&](const at::Tensor& x) { return Columns(x, head_dim_).contiguous(); };
    return {own(gradients_.dq), own(gradients_.dk), own(gradients_.dv)};
  }

 private:
  void RunWindow(const PlacedTiles::Window& window) {
    const auto sums_of = [&window](const at::Tensor& room) {
      return room.narrow(1, 0, std::min(window.tokens, room.size(1)));
    };
    const TileSums sums{.dq = sums_of(room_.dq),
                        .dk = sums_of(room_.dk),
                        .dv = sums_of(room_.dv),
                        .begin = window.begin,
                        .pool_dk = PoolKeys(owed_),
                        .pool_dv = PoolValues(owed_)};
    sums.dq.zero_();
    if (window.zero_keys) {
      sums.dk.zero_();
      sums.dv.zero_();
    }
    const auto run = [&](const PlacedTiles::Backward& pass) {
      TileBackward(inputs_, douts_, starts_, pass, tiles_.key_sums, tiles_.deterministic, sums,
                   {gradients_.dk, gradients_.dv});
    };
    // A rank that exchanges rows has one window, else none are owed.
    std::for_each(tiles_.backward_far.begin(), tiles_.backward_far.end(), run);
    FarGradients far(*call_.parts, Columns(owed_, head_dim_).contiguous(), call_.wire,
                     call_.exchange);
    std::for_each(window.passes.begin(), window.passes.end(), run);
    const auto part_of = [&window](const at::Tensor& x) {
      return x.narrow(1, window.begin, window.tokens);
    };
    part_of(gradients_.dq).copy_(sums.dq);
    const auto own = [&](const at::Tensor& x) { return Columns(x, head_dim_); };
    far.AddTo(
        own(sums.dk), own(sums.dv),
        window.finishes ? FinishedKeys{own(gradients_.dk), own(gradients_.dv)} : FinishedKeys{});
    if (!window.finishes) {
      part_of(gradients_.dk).copy_(sums.dk);
      part_of(gradients_.dv).copy_(sums.dv);
    }
    far.Wait();
  }

  const Call& call_;
  const PlacedTiles& tiles_;
  const TileInputs inputs_;
  const int64_t head_dim_;  // of the call; all else has the kernels'
  const at::Tensor douts_, starts_;
  const at::Tensor owed_;           // gradients of the pool
  const DenseGradients gradients_;  // what becomes of them
  DenseGradients room_;             // for the sums of one window
};

}  // namespace

DenseGradients TilePassBackward(const Call& call, const Saved& saved, const at::Tensor& dout) {
  if (!saved.pool.defined()) {
    const at::Tensor keys = at::zeros_like(Columns(saved.k, dout.size(3)));
    return {at::zeros_like(dout), keys, keys.clone()};
  }
  return BackwardPass(call, saved, dout).Run();
}

}  // namespace ringmaster::attention
