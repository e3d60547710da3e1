#include "attention/plan/head_shares.h"

namespace ringmaster::attention {
namespace {

// Rows of so many heads at a rank's tokens.
uint64_t Rows(const ShardMap& map, int rank, int64_t heads, const MessageShape& shape) {
  return static_cast<uint64_t>(map.LocalTokens(rank)) * heads * shape.batch;
}

}  // namespace

uint64_t HeadShares::ForwardBytes(int from, int to, const MessageShape& shape) const {
  const uint64_t row = shape.head_dim * shape.element_bytes;
  return Rows(map_, from, Of(to).count * (group() + 2), shape) * row +
         Rows(map_, to, Of(from).count * group(), shape) * (row + shape.gradient_bytes);
}

uint64_t HeadShares::BackwardBytes(int from, int to, const MessageShape& shape) const {
  const uint64_t row = shape.head_dim * shape.element_bytes;
  return Rows(map_, from, Of(to).count * group(), shape) * row +
         Rows(map_, to, Of(from).count * (group() + 2), shape) * row;
}

}  // namespace ringmaster::attention
