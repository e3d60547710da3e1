#pragma once

#include <cstdint>

#include "attention/plan/options.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// Which heads each rank of a ring computes when tokens are swapped for heads (Strategy::kHeads): a
// consecutive part of the key/value heads, with the query heads that read them, as even as can be;
// of more ranks than key/value heads some have none. Immutable value; thread-compatible.
class HeadShares {
 public:
  struct Share {
    int64_t first = 0;  // key/value head
    int64_t count = 0;

    friend bool operator==(const Share&, const Share&) = default;
  };

  // REQUIRES: heads a multiple of kv_heads.
  HeadShares(ShardMap map, int heads, int kv_heads)
      : map_(std::move(map)), heads_(heads), kv_heads_(kv_heads) {}

  const ShardMap& map() const { return map_; }
  int64_t kv_heads() const { return kv_heads_; }
  // Query heads of a key/value head.
  int64_t group() const { return heads_ / kv_heads_; }
  Share Of(int rank) const {
    const int64_t begin = int64_t{rank} * kv_heads_ / map_.ranks();
    return {begin, (int64_t{rank} + 1) * kv_heads_ / map_.ranks() - begin};
  }

  // What goes from -> to, another rank. Forward: `from`'s tokens of the queries, keys and values of
  // `to`'s heads, then `to`'s tokens of the output of `from`'s heads and its log denominators.
  // Backward: the output's gradient, then those of queries, keys and values, of the inputs' type.
  uint64_t ForwardBytes(int from, int to, const MessageShape& shape) const;
  uint64_t BackwardBytes(int from, int to, const MessageShape& shape) const;

 private:
  ShardMap map_;
  int heads_;
  int kv_heads_;
};

}  // namespace ringmaster::attention
