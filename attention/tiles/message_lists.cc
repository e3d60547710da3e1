#include "attention/tiles/message_lists.h"

#include <algorithm>

#include "attention/parts/places.h"

namespace ringmaster::attention {
namespace {

std::vector<uint32_t> PlacesOf(const RankParts::Message& message, int heads) {
  std::vector<uint32_t> places;
  for (const RowSet& set : message.local) {
    ForEachPlace(set, heads,
                 [&](int64_t place) { places.push_back(static_cast<uint32_t>(place)); });
  }
  return places;
}

}  // namespace

MessageLists MakeMessageLists(const RankParts& rank, int kv_heads) {
  MessageLists lists{.kept = PlacesOf(rank.kept, kv_heads)};
  for (const RankParts::Message& message : rank.outgoing) {
    const std::vector<uint32_t> places = PlacesOf(message, kv_heads);
    lists.sent.insert(lists.sent.end(), places.begin(), places.end());
  }
  std::vector<uint32_t> all = lists.kept;
  all.insert(all.end(), lists.sent.begin(), lists.sent.end());
  if (all.empty()) return lists;
  // How many rows lie before each place, then where the next of its rows goes.
  std::vector<uint32_t> next(size_t{*std::max_element(all.begin(), all.end())} + 2);
  for (const uint32_t place : all) ++next[place + 1];
  for (size_t place = 0; place + 1 < next.size(); ++place) {
    if (next[place + 1] > 0) {
      lists.places.push_back(static_cast<uint32_t>(place));
      lists.begin.push_back(next[place]);
    }
    next[place + 1] += next[place];
  }
  lists.begin.push_back(static_cast<uint32_t>(all.size()));
  lists.rows.resize(all.size());
  for (uint32_t row = 0; row < all.size(); ++row) lists.rows[next[all[row]]++] = row;
  return lists;
}

}  // namespace ringmaster::attention
