#pragma once

#include <cstdint>
#include <utility>

#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// Sizes that turn rows into bytes.
struct MessageShape {
  int64_t batch = 1;
  int64_t head_dim = 0;
  // Of one element of K and V.
  int64_t element_bytes = 4;
  // Of one element of the dK and dV partials that travel back: 8 for fp64 inputs, else 4.
  int64_t gradient_bytes = 4;
};

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
  int heads() const { return heads_; }
  int kv_heads() const { return kv_heads_; }
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
