#include "attention/tiles/tile_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

namespace ringmaster::attention {
namespace {

using at::Tensor;

// Tensors of lists hold the structures of kernels/tile_list.h as bytes; those without numbers are
// not there.
TORCH_LIBRARY(ringmaster, library) {
  library.def("tile_why_not(Tensor q) -> str");
  library.def(
      "tile_forward(Tensor q, Tensor k, Tensor v, Tensor pool_k, Tensor pool_v, int[] steps, "
      "float scale, Tensor tiles, Tensor keys, Tensor slots, Tensor merge_begin, Tensor(a!) out, "
      "Tensor(b!) lse, Tensor(c!) rest, Tensor(d!) part_outs, Tensor(e!) part_lses) -> ()");
  library.def(
      "tile_mix(Tensor part_outs, Tensor part_lses, Tensor places, Tensor begin, Tensor(a!) out, "
      "Tensor(b!) lse, Tensor(c!) rest) -> ()");
  library.def(
      "tile_starts(Tensor dout, Tensor out, Tensor rest, Tensor lse, float scale, "
      "Tensor(a!) starts) -> ()");
  library.def("tile_pack_rows(Tensor k, Tensor v, Tensor places, Tensor(a!) message) -> ()");
  library.def(
      "tile_add_rows(Tensor places, Tensor begin, Tensor rows, Tensor kept, Tensor returned, "
      "Tensor(a!) dk_sums, Tensor(b!) dv_sums, Tensor(c!)? dk, Tensor(d!)? dv) -> ()");
  library.def(
      "dropout_factors(Tensor philox_keys, Tensor queries, Tensor keys, int dropped_below, "
      "float kept, Tensor(a!) factors) -> ()");
  library.def("rotate(Tensor x, Tensor cos, Tensor sin, float direction, Tensor(a!) out) -> ()");
  library.def(
      "tile_backward(Tensor q, Tensor k, Tensor v, Tensor pool_k, Tensor pool_v, int[] steps, "
      "float scale, Tensor dout, Tensor starts, Tensor tiles, Tensor keys, "
      "Tensor key_tiles, Tensor queries, bool deterministic, int key_gradients, Tensor key_sums, "
      "int begin, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!) pool_dk, "
      "Tensor(e!) pool_dv, Tensor(f!) finished_dk, Tensor(g!) finished_dv) -> ()");
}

c10::OperatorHandle Find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

}  // namespace

std::string WhyNoTileKernels(const Tensor& q) {
  static const auto why_not = Find("ringmaster::tile_why_not").typed<std::string(const Tensor&)>();
  const c10::DispatchKey key =
      q.device().is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  if (!why_not.hasKernelForDispatchKey(key)) {
    return std::string("no kernels for ") + c10::DeviceTypeName(q.device().type(), true) +
           " are loaded";
  }
  return why_not.call(q);
}

namespace {

void CallForward(const TileInputs& inputs, const PlacedTiles::Queries& lists, const Tensor& slots,
                 const Tensor& merge_begin, const TileOutputs& outputs) {
  static const auto forward =
      Find("ringmaster::tile_forward")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      at::IntArrayRef, double, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&)>();
  if (lists.tiles.numel() > 0) {
    forward.call(inputs.q, inputs.k, inputs.v, inputs.pool_k, inputs.pool_v, inputs.steps,
                 inputs.scale, lists.tiles, lists.keys, slots, merge_begin, outputs.out,
                 outputs.lse, outputs.rest, outputs.part_outs, outputs.part_lses);
  }
}

}  // namespace

void TileForward(const TileInputs& inputs, const PlacedTiles::Queries& lists, const Tensor& slots,
                 const TileOutputs& outputs) {
  CallForward(inputs, lists, slots, at::empty({0}, slots.options()), outputs);
}

void TileForwardLast(const TileInputs& inputs, const PlacedTiles& lists,
                     const TileOutputs& outputs) {
  CallForward(inputs, lists.last, lists.last_slots, lists.merge_begin, outputs);
}

void TileMix(const PlacedTiles& lists, const TileOutputs& outputs) {
  static const auto mix =
      Find("ringmaster::tile_mix")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&)>();
  if (lists.mix_places.numel() > 0) {
    mix.call(outputs.part_outs, outputs.part_lses, lists.mix_places, lists.mix_begin, outputs.out,
             outputs.lse, outputs.rest);
  }
}

Tensor TileStarts(const Tensor& dout, const Tensor& out, const Tensor& rest, const Tensor& lse,
                  double scale) {
  static const auto starts = Find("ringmaster::tile_starts")
                                 .typed<void(const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, double, const Tensor&)>();
  const Tensor result =
      at::empty({dout.size(0), dout.size(1), kernels::PairsOfHeads(dout.size(2)), 2, 2},
                dout.options().dtype(at::kFloat));
  starts.call(dout, out, rest, lse, scale, result);
  return result;
}

void DropoutFactors(const Tensor& philox_keys, const Tensor& queries, const Tensor& keys,
                    uint64_t dropped_below, double kept, const Tensor& factors) {
  static const auto make = Find("ringmaster::dropout_factors")
                               .typed<void(const Tensor&, const Tensor&, const Tensor&, int64_t,
                                           double, const Tensor&)>();
  make.call(philox_keys, queries, keys, static_cast<int64_t>(dropped_below), kept, factors);
}

void Rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, double direction,
            const Tensor& out) {
  static const auto rotate =
      Find("ringmaster::rotate")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, double, const Tensor&)>();
  rotate.call(x, cos, sin, direction, out);
}

void TileBackward(const TileInputs& inputs, const Tensor& dout, const Tensor& starts,
                  const PlacedTiles::Backward& lists, const Tensor& key_sums, bool deterministic,
                  const TileSums& sums, const FinishedKeys& finished) {
  static const auto backward =
      Find("ringmaster::tile_backward")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      at::IntArrayRef, double, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&, bool, int64_t, const Tensor&,
                      int64_t, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&)>();
  if (lists.queries.tiles.numel() > 0 || lists.keys.tiles.numel() > 0) {
    backward.call(inputs.q, inputs.k, inputs.v, inputs.pool_k, inputs.pool_v, inputs.steps,
                  inputs.scale, dout, starts, lists.queries.tiles, lists.queries.keys,
                  lists.keys.tiles, lists.keys.queries, deterministic,
                  static_cast<int64_t>(lists.key_gradients), key_sums, sums.begin, sums.dq, sums.dk,
                  sums.dv, sums.pool_dk, sums.pool_dv, finished.dk, finished.dv);
  }
}

void TilePackRows(const Tensor& k, const Tensor& v, const Tensor& places, const Tensor& message) {
  static const auto pack =
      Find("ringmaster::tile_pack_rows")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>();
  if (places.numel() > 0) {
    pack.call(k, v, places, message);
  }
}

void TileAddRows(const PlacedTiles::Messages& lists, const Tensor& kept, const Tensor& returned,
                 const Tensor& dk_sums, const Tensor& dv_sums, const FinishedKeys& finished) {
  static const auto add =
      Find("ringmaster::tile_add_rows")
          .typed<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, const Tensor&, const std::optional<Tensor>&,
                      const std::optional<Tensor>&)>();
  const auto or_none = [](const Tensor& x) {
    return x.defined() ? std::optional<Tensor>(x) : std::nullopt;
  };
  if (lists.places.numel() > 0) {
    add.call(lists.places, lists.begin, lists.rows, kept, returned, dk_sums, dv_sums,
             or_none(finished.dk), or_none(finished.dv));
  }
}

}  // namespace ringmaster::attention
