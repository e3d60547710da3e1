#include "attention/tile_passes.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "attention/alone.h"
#include "attention/far_rows.h"
#include "attention/kernels/tile_list.h"
#include "attention/placed_tiles.h"
#include "attention/tile_ops.h"

namespace ringmaster::attention {
namespace {

constexpr int64_t kMaxBatch = 65535;  // blocks of a launch
constexpr int64_t kMaxTokens = int64_t{1} << 30;
// A query may have a local and a far part in each branch.
constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;

// Tensor maps want aligned rows; a size of one may come with any stride.
at::Tensor AsOperand(const at::Tensor& x) {
  constexpr int64_t kAlignedElements = 8;
  bool fits =
      x.stride(3) == 1 &&
      reinterpret_cast<uintptr_t>(x.const_data_ptr()) % (kAlignedElements * sizeof(uint16_t)) == 0;
  for (int i = 0; i < 3; ++i) {
    fits = fits && x.stride(i) > 0 && x.stride(i) % kAlignedElements == 0;
  }
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

TileInputs Inputs(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& pool) {
  return {.q = q,
          .k = k,
          .v = v,
          .pool_k = PoolKeys(pool),
          .pool_v = PoolValues(pool),
          .steps = call.parts->tiles()->steps,
          .scale = call.scale};
}

std::string WhyNot(const DilatedAttentionOptions& options) {
  const auto branches = static_cast<int64_t>(options.branches.size());
  if (options.mix_gradient == MixGradient::kDetached && branches > 1) {
    return "detached mixing weights need the output of each branch";
  }
  // Rows beside a tile are read with it and multiplied by zero.
  if (std::none_of(options.branches.begin(), options.branches.end(),
                   [](const Branch& branch) { return branch.dilation_rate == 1; })) {
    return "no branch has rate 1, and rows that no branch covers may hold anything";
  }
  // A view for each rate, one for single rows and one for the pool.
  if (branches + 2 > kernels::kMaxViews) {
    return c10::str(branches, " branches, more than ", kernels::kMaxViews - 2);
  }
  return "";
}

std::string WhyNot(const BlockSparseAttentionOptions&) {
  return "block masks are not made into tiles yet";
}

}  // namespace

std::string WhyNotTiles(const at::Tensor& q, const AttentionPattern& pattern, double scale,
                        at::ScalarType accumulate) {
  const int64_t branches = Branches(pattern);
  if (q.scalar_type() != at::kBFloat16) {
    return c10::str("the dtype is ", q.scalar_type(), ", not BFloat16");
  }
  if (accumulate != at::kFloat) {
    return "short sequences are summed in fp64";
  }
  if (q.size(3) != 64 && q.size(3) != 128) {
    return c10::str("the head dimension is ", q.size(3), ", not 64 or 128");
  }
  if (!(static_cast<float>(scale) > 0)) {
    return c10::str("the scale is ", scale, ", not above 0");
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
  return WhyNoTileKernels(q);
}

AttentionOutput TilePassForward(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, Saved* saved) {
  const PlacedTiles& tiles = *call.parts->tiles();
  const at::Tensor queries = AsOperand(q), keys = AsOperand(k), values = AsOperand(v);
  const auto sums = q.options().dtype(at::kFloat);
  TileOutputs outputs{.out = at::empty(q.sizes(), q.options()),
                      .lse = at::empty(q.sizes().slice(0, 3), sums)};
  at::Tensor pool;
  if (q.numel() > 0) {
    outputs.part_outs = at::empty({q.size(0), tiles.parts, q.size(3)}, sums);
    outputs.part_lses = at::empty({q.size(0), tiles.parts}, sums);
    FarRows rows(*call.parts, keys, values, call.exchange);
    const TileInputs inputs = Inputs(call, queries, keys, values, rows.pool());
    TileForward(inputs, tiles.local, tiles.slots, outputs);
    rows.Wait();
    TileForward(inputs, tiles.far, tiles.slots, outputs);
    TileMix(tiles.merge_begin, outputs);
    pool = rows.pool();
  }
  if (saved != nullptr) {
    *saved = {queries, keys, values, {outputs.out}, outputs.lse, pool};
  }
  return {outputs.out, outputs.lse};
}

DenseGradients TilePassBackward(const Call& call, const Saved& saved, const at::Tensor& dout) {
  const PlacedTiles& tiles = *call.parts->tiles();
  const auto sums = saved.q.options().dtype(at::kFloat);
  const at::Tensor dq = at::zeros(saved.q.sizes(), sums);
  const at::Tensor dk = at::empty(saved.k.sizes(), sums), dv = at::empty(saved.k.sizes(), sums);
  if (saved.pool.defined()) {
    const at::Tensor douts = AsOperand(dout);
    const at::Tensor delta = RowDots(douts.contiguous(), saved.outs[0]);
    const at::Tensor lse = WithoutAlone(*call.parts, saved.lse);
    const bool deterministic = at::globalContext().deterministicAlgorithms();
    const at::Tensor owed = at::zeros(saved.pool.sizes(), sums);
    const TileInputs inputs = Inputs(call, saved.q, saved.k, saved.v, saved.pool);
    const auto run = [&](const PlacedTiles::Backward& pass, bool store_keys) {
      TileBackward(inputs, douts, lse, delta, pass, deterministic, store_keys,
                   {dq, dk, dv, PoolKeys(owed), PoolValues(owed)});
    };
    for (const PlacedTiles::Backward& pass : tiles.backward_far) {
      run(pass, /*store_keys=*/false);
    }
    FarGradients gradients(*call.parts, owed, call.wire, call.exchange);
    // A branch of rate 1 has all keys, so that nothing need be there before.
    TORCH_INTERNAL_ASSERT(tiles.backward_local.front().all_keys);
    for (const PlacedTiles::Backward& pass : tiles.backward_local) {
      run(pass, /*store_keys=*/&pass == &tiles.backward_local.front());
    }
    GiveAlone(*call.parts, douts, dv);
    gradients.AddTo(dk, dv);
  }
  const at::ScalarType dtype = saved.q.scalar_type();
  return {dq.to(dtype), dk.to(dtype), dv.to(dtype)};
}

}  // namespace ringmaster::attention
