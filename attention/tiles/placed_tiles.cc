#include "attention/tiles/placed_tiles.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

#include "attention/parts/places.h"

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

// The places, token by head, that rows have not been named of.
class Uncovered {
 public:
  Uncovered(int64_t tokens, int64_t heads) : heads_(heads), places_(tokens * heads, 1) {}

  void Cover(const RowSet& rows) {
    ForEachPlace(rows, heads_, [this](int64_t place) { places_[place] = 0; });
  }
  bool any() const {
    return std::any_of(places_.begin(), places_.end(), [](uint8_t place) { return place != 0; });
  }
  at::Tensor On(at::Device device) const {
    return Place(places_, at::kBool, device).view({-1, heads_, 1});
  }

 private:
  const int64_t heads_;
  std::vector<uint8_t> places_;
};

}  // namespace

PlacedTiles::Messages::Messages(const MessageLists& lists, at::Device device)
    : sent(Place(lists.sent, at::kInt, device)),
      kept(Place(lists.kept, at::kInt, device)),
      places(Place(lists.places, at::kInt, device)),
      begin(Place(lists.begin, at::kInt, device)),
      rows(Place(lists.rows, at::kInt, device)) {}

size_t PlacedTiles::Messages::bytes() const {
  return sent.nbytes() + kept.nbytes() + places.nbytes() + begin.nbytes() + rows.nbytes();
}

PlacedTiles::PlacedTiles(const RankParts& rank, const TileShape& shape, at::Device device)
    : messages(MakeMessageLists(rank, shape.kv_heads), device) {
  TileLists lists = MakeTileLists(rank, shape);
  // Where branches have last tiles, these have every place, and a query sees its own key.
  if (lists.last.tiles.empty() || rank.tile_order.has_value()) {
    PlaceUncovered(rank, shape, device);
  }
  local = Place(lists.local, device);
  far = Place(lists.far, device);
  last = Place(lists.last, device);
  slots = Place(lists.slots, at::kInt, device);
  last_slots = Place(lists.last_slots, at::kInt, device);
  merge_begin = Place(lists.merge_begin, at::kInt, device);
  mix_places = Place(lists.mix_places, at::kInt, device);
  mix_begin = Place(lists.mix_begin, at::kInt, device);
  parts = lists.parts();
  deterministic = shape.deterministic;
  backward_far = Place(lists.backward_far, device);
  for (const TileLists::Window& window : lists.windows) {
    windows.push_back({window.begin, window.tokens, window.zero_keys, window.finishes(),
                       Place(window.passes, device)});
  }
  key_sums = Place(lists.key_sums, at::kByte, device);
  steps = std::move(lists.steps);
}

void PlacedTiles::PlaceUncovered(const RankParts& rank, const TileShape& shape, at::Device device) {
  Uncovered queries(shape.tokens, shape.heads), keys(shape.tokens, shape.kv_heads);
  for (const Part& part : rank.local) {
    queries.Cover(part.queries);
    keys.Cover(part.keys);
  }
  for (const Part& part : rank.far) {
    queries.Cover(part.queries);
  }
  for (const RankParts::Message& message : rank.outgoing) {
    std::for_each(message.local.begin(), message.local.end(),
                  [&](const RowSet& rows) { keys.Cover(rows); });
  }
  std::for_each(rank.kept.local.begin(), rank.kept.local.end(),
                [&](const RowSet& rows) { keys.Cover(rows); });
  if (queries.any()) no_query = queries.On(device);
  if (keys.any()) no_key = keys.On(device);
}

size_t PlacedTiles::bytes() const {
  size_t sum = sizeof(PlacedTiles) + messages.bytes();
  for (const at::Tensor& list :
       {slots, last_slots, merge_begin, mix_places, mix_begin, key_sums, no_query, no_key}) {
    sum += list.defined() ? list.nbytes() : 0;
  }
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
