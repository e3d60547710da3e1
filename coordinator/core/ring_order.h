#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace ringmaster::coordinator {

// Where a worker is, from far to near, for the order of a ring.
struct Place {
  std::string worker;
  std::string zone;
  std::string host;
  std::string link_group;
  // Its rank in the generation before; -1 when it had none.
  int previous_rank = -1;
  // When its process came: an old one has warmed up.
  absl::Time since = absl::InfinitePast();
};

// What a message between two workers costs more than one within a link group.
int EdgeCost(const Place& a, const Place& b);
// The sum over all edges of all rings, each ring closed: ranks [0, ring_size) are the first ring.
int RingCost(const std::vector<Place>& order, int ring_size);

// The places in rank order, each ring on as few zones, hosts and link groups as a greedy packing
// finds. Workers keep the ranks they had when that costs no more. Depends on the set of places
// only, not on their order. REQUIRES: a multiple of ring_size.
std::vector<Place> OrderRings(std::vector<Place> places, int ring_size);

// Picks `count` of `candidates` for rings of `ring_size` that already have `members`: those near
// the members first, else those that fill the smallest sufficient host; among equals the longest
// there. REQUIRES: enough candidates.
std::vector<Place> ChoosePlaces(std::vector<Place> candidates, const std::vector<Place>& members,
                                int count, int ring_size);

}  // namespace ringmaster::coordinator
