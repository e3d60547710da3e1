#pragma once

#include <cstdint>
#include <vector>

#include "attention/parts/rank_parts.h"

namespace ringmaster::attention {

// Where gradients are zero whatever the numbers are, as places, token * heads + head, of this
// rank's rows, in order. By products of a backward pass they would be differences of equal numbers,
// and so these numbers' rounding.
struct ZeroGradients {
  // Of q: the queries that see no key but their own.
  std::vector<int64_t> queries;
  // Of k: their own keys, where no other query sees these.
  std::vector<int64_t> keys;
};

// REQUIRES: all parts, which PlacedParts drops where there are tiles. The time grows with the runs
// of all parts, not with their length, where few queries are alone.
ZeroGradients FindZeroGradients(const RankParts& rank, int heads, int kv_heads);

}  // namespace ringmaster::attention
