#include "attention/placed_tiles.h"

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
         pass.all_keys});
  }
  return placed;
}

}  // namespace

PlacedTiles::PlacedTiles(const RankParts& rank, int64_t tokens, int heads, int kv_heads,
                         int head_dim, at::Device device) {
  TileLists lists = MakeTileLists(rank, tokens, heads, kv_heads, head_dim);
  local = Place(lists.local, device);
  far = Place(lists.far, device);
  backward_far = Place(lists.backward_far, device);
  std::stable_partition(lists.backward_local.begin(), lists.backward_local.end(),
                        [](const TileLists::Backward& pass) { return pass.all_keys; });
  backward_local = Place(lists.backward_local, device);
  merge_begin = Place(lists.merge_begin, at::kInt, device);
  slots = Place(lists.slots, at::kInt, device);
  parts = lists.parts();
  steps = std::move(lists.steps);
}

size_t PlacedTiles::bytes() const {
  size_t sum = sizeof(PlacedTiles) + merge_begin.nbytes() + slots.nbytes();
  const auto add = [&sum](const Queries& lists) {
    sum += lists.tiles.nbytes() + lists.keys.nbytes();
  };
  add(local);
  add(far);
  for (const std::vector<Backward>* passes : {&backward_far, &backward_local}) {
    for (const Backward& pass : *passes) {
      add(pass.queries);
      sum += pass.keys.tiles.nbytes() + pass.keys.queries.nbytes();
    }
  }
  return sum;
}

}  // namespace ringmaster::attention
