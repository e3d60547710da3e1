#include "coordinator/core/ring_order.h"

#include <algorithm>
#include <climits>
#include <map>
#include <tuple>
#include <utility>

namespace ringmaster::coordinator {
namespace {

constexpr int kLinkGroupCost = 1;
constexpr int kHostCost = 100;
constexpr int kZoneCost = 10000;

std::string HostKey(const Place& place) { return place.zone + '\n' + place.host; }

using Before = bool (*)(const Place& a, const Place& b);

bool LongerThere(const Place& a, const Place& b) {
  return std::tie(a.since, a.worker) < std::tie(b.since, b.worker);
}

bool RankThenName(const Place& a, const Place& b) {
  const auto rank = [](const Place& p) { return p.previous_rank < 0 ? INT_MAX : p.previous_rank; };
  return std::tuple(rank(a), a.worker) < std::tuple(rank(b), b.worker);
}

// Within a host, link groups stay together, larger ones first.
void SortByLinkGroup(Before before, std::vector<Place>* places) {
  std::sort(places->begin(), places->end(), before);
  std::map<std::string, int> size;
  for (const Place& place : *places) ++size[place.link_group];
  std::stable_sort(places->begin(), places->end(), [&](const Place& a, const Place& b) {
    return std::tuple(-size[a.link_group], a.link_group) <
           std::tuple(-size[b.link_group], b.link_group);
  });
}

using Hosts = std::map<std::string, std::vector<Place>>;

Hosts ByHost(const std::vector<Place>& places, Before before) {
  Hosts hosts;
  for (const Place& place : places) hosts[HostKey(place)].push_back(place);
  for (auto& [key, on_host] : hosts) SortByLinkGroup(before, &on_host);
  return hosts;
}

// The host to take the next places of a ring from: in the zone taken from last if it can be, the
// smallest that has `wanted`, else the largest.
Hosts::iterator NextHost(Hosts& hosts, size_t wanted, const std::string& zone) {
  const auto rank = [&](const std::vector<Place>& on_host) {
    const bool far = !zone.empty() && on_host.front().zone != zone;
    const bool enough = on_host.size() >= wanted;
    const auto size = static_cast<int64_t>(on_host.size());
    return std::tuple(far, !enough, enough ? size : -size);
  };
  return std::min_element(hosts.begin(), hosts.end(), [&](const auto& a, const auto& b) {
    return rank(a.second) < rank(b.second);
  });
}

// Takes `count` places, ring by ring.
std::vector<Place> Pack(Hosts hosts, size_t count, size_t ring_size) {
  std::vector<Place> packed;
  while (packed.size() < count) {
    std::string zone;
    const size_t end = std::min(count, packed.size() + ring_size);
    while (packed.size() < end) {
      const auto host = NextHost(hosts, end - packed.size(), zone);
      std::vector<Place>& on_host = host->second;
      zone = on_host.front().zone;
      const size_t take = std::min(on_host.size(), end - packed.size());
      packed.insert(packed.end(), on_host.begin(), on_host.begin() + static_cast<int64_t>(take));
      on_host.erase(on_host.begin(), on_host.begin() + static_cast<int64_t>(take));
      if (on_host.empty()) hosts.erase(host);
    }
  }
  return packed;
}

// Everyone keeps its rank; newcomers fill the gaps. Empty when ranks do not fit.
std::vector<Place> InPlace(std::vector<Place> places) {
  std::sort(places.begin(), places.end(), RankThenName);
  std::vector<Place> order(places.size());
  std::vector<bool> taken(places.size(), false);
  for (const Place& place : places) {
    const int rank = place.previous_rank;
    if (rank < 0) continue;
    if (rank >= static_cast<int>(places.size()) || taken[rank]) return {};
    order[rank] = place;
    taken[rank] = true;
  }
  size_t gap = 0;
  for (const Place& place : places) {
    if (place.previous_rank >= 0) continue;
    while (taken[gap]) ++gap;
    order[gap] = place;
    taken[gap] = true;
  }
  return order;
}

}  // namespace

int EdgeCost(const Place& a, const Place& b) {
  if (a.zone != b.zone) return kZoneCost;
  if (a.host != b.host) return kHostCost;
  return a.link_group != b.link_group ? kLinkGroupCost : 0;
}

int RingCost(const std::vector<Place>& order, int ring_size) {
  int cost = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t ring = i / ring_size * ring_size;
    cost += EdgeCost(order[i], order[ring + (i - ring + 1) % ring_size]);
  }
  return cost;
}

std::vector<Place> OrderRings(std::vector<Place> places, int ring_size) {
  std::vector<Place> packed = Pack(ByHost(places, RankThenName), places.size(), ring_size);
  std::vector<Place> in_place = InPlace(std::move(places));
  const bool keep =
      !in_place.empty() && RingCost(in_place, ring_size) <= RingCost(packed, ring_size);
  return keep ? in_place : packed;
}

std::vector<Place> ChoosePlaces(std::vector<Place> candidates, const std::vector<Place>& members,
                                int count, int ring_size) {
  if (members.empty()) return Pack(ByHost(candidates, LongerThere), count, ring_size);
  const auto distance = [&](const Place& candidate) {
    int nearest = INT_MAX;
    for (const Place& member : members) nearest = std::min(nearest, EdgeCost(candidate, member));
    return nearest;
  };
  std::sort(candidates.begin(), candidates.end(), [&](const Place& a, const Place& b) {
    return std::tuple(distance(a), a.since, a.worker) < std::tuple(distance(b), b.since, b.worker);
  });
  candidates.resize(count);
  return candidates;
}

}  // namespace ringmaster::coordinator
