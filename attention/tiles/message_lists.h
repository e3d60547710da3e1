#pragma once

#include <cstdint>
#include <vector>

#include "attention/parts/rank_parts.h"

namespace ringmaster::attention {

// Which rows of keys a rank's messages are of, for kernels; a place is a token x kv_heads + a head.
// Immutable once made.
struct MessageLists {
  // The place of each row of the send buffer, and of each of the rank's own in the pool.
  std::vector<uint32_t> sent;
  std::vector<uint32_t> kept;
  // The other way round, for gradients that come back: place places[i], which ascend, is that of
  // rows[begin[i]] .. rows[begin[i + 1] - 1], which ascend: the kept ones first, then those of the
  // send buffer, numbered from kept.size() on.
  std::vector<uint32_t> places;
  std::vector<uint32_t> begin;
  std::vector<uint32_t> rows;
};

// REQUIRES: all numbers are below 2^32.
MessageLists MakeMessageLists(const RankParts& rank, int kv_heads);

}  // namespace ringmaster::attention
