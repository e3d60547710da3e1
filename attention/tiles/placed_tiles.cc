#include "attention/tiles/placed_tiles.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

namespace ringmaster::attention {
namespace {

template <typename T>
at::Tensor Place(const std::vector<T>& list, at::ScalarType type, at::Device device) {
  const auto size = static_cast<int64_t>(list.size() * sizeof(T) / at::elementSize(type));
  const at::Tensor placed = at::empty({size}, at::TensorOptions(type).device(device));
  if (size > 0) {
    // Copied before the list is gone: host memory that is not pinned is read at once.
    placed.copy_(at::from_blob(const_cast<T*>(list.data()), {size}, type));
  }
  return placed;
}

PlacedTiles::Queries Place(const TileLists::QueryTiles& lists, at::Device device) {
  return {Place(lists.tiles, at::kByte, device), Place(lists.keys, at::kByte, device)};
}

std::vector<PlacedTiles::Backward> Place(const std::vector<TileLists::Backward>& passes,
                                         at::Device device) {
  std::vector<PlacedTiles::Backward> placed;
  for (const TileLists::Backward& pass : passes) {
    placed.push_back(
        {Place(pass.queries, device),
         {Place(pass.keys.tiles, at::kByte, device), Place(pass.keys.queries, at::kByte, device)},
         pass.key_gradients});
  }
  return placed;
}

}  // namespace

PlacedTiles::PlacedTiles(const RankParts& rank, const TileShape& shape, at::Device device) {
  TileLists lists = MakeTileLists(rank, shape);
  local = Place(lists.local, device);
  far = Place(lists.far, device);
  last = Place(lists.last, device);
  slots = Place(lists.slots, at::kInt, device);
  merge_begin = Place(lists.merge_begin, at::kInt, device);
  parts = lists.parts();
  deterministic = shape.deterministic;
  backward_far = Place(lists.backward_far, device);
  for (const TileLists::Window& window : lists.windows) {
    windows.push_back({window.begin, window.tokens, window.zero_keys, window.finishes(),
                       Place(window.passes, device)});
  }
  summed = Place(lists.summed, at::kByte, device);
  steps = std::move(lists.steps);
}

size_t PlacedTiles::bytes() const {
  size_t sum = sizeof(PlacedTiles) + merge_begin.nbytes() + slots.nbytes() + summed.nbytes();
  const auto add = [&sum](const Queries& lists) {
    sum += lists.tiles.nbytes() + lists.keys.nbytes();
  };
  const auto add_passes = [&](const std::vector<Backward>& passes) {
    for (const Backward& pass : passes) {
      add(pass.queries);
      sum += pass.keys.tiles.nbytes() + pass.keys.queries.nbytes();
    }
  };
  add(local);
  add(far);
  add(last);
  add_passes(backward_far);
  for (const Window& window : windows) {
    add_passes(window.passes);
  }
  return sum;
}

}  // namespace ringmaster::attention
