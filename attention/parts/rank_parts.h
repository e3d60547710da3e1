#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention/parts/row_set.h"
#include "attention/plan/options.h"
#include "attention/plan/plan.h"

namespace ringmaster::attention {

// A batch of dense attention problems of one shape: in group g the `queries.rows_per_group` query
// rows of that group see the `keys.rows_per_group` key rows of that group, all of them or, when
// causal, all but those behind their own, where the group's last keys are its queries' own.
struct Part {
  int branch = 0;  // 0 for a mask
  bool causal = false;
  RowSet queries;  // rows of this rank's q
  RowSet keys;     // rows of this rank's k and v, or of the pool for far parts (which has one head)
  // With gates, the number of each group's (BlockMask::Pairs); else empty.
  std::vector<int64_t> gates;
};

// What one rank does in a call of the operator. Its own tokens are numbered in the shard map's
// local order. The *pool* holds the key and value rows that it needs beside those of the range at
// hand: received from the peers, in the order of ranks and of the plan's message, and its own for
// its other ranges in its own rank's place.
struct RankParts {
  // A consecutive part of the pool, or of what goes to a peer: local rows of one branch, as one
  // group.
  struct Message {
    int peer = 0;
    int64_t begin =
        0;  // first row: in the pool for incoming and kept, in the send buffer for outgoing
    int64_t rows = 0;
    // The local rows it consists of, a set a branch so that each is distinct; none for incoming.
    std::vector<RowSet> local;
  };

  // Parts in the order in which they are computed and merged: by branch, then by their place in the
  // sequence.
  std::vector<Part> local;
  std::vector<Part> far;
  // Of a mask, whose tiles are taken head by head; else they are in the order of the parts.
  std::optional<TileOrder> tile_order;
  // The queries that see no key but their own, row by row in one group, and the rows of k and v
  // there; query heads that share a key/value head repeat its row.
  RowSet alone;
  RowSet alone_keys;
  // In the order of peers, none without rows.
  std::vector<Message> outgoing;
  std::vector<Message> incoming;
  Message kept;
  int64_t outgoing_rows = 0;
  int64_t pool_rows = 0;
  // Which tokens of the sequence the rank's own rows are, and those of the pool, in their order.
  std::vector<Run> own_tokens;
  std::vector<Run> pool_tokens;

  size_t bytes() const;
};

// Cuts the work of `rank` into parts. The cost grows with the number of segments that the rank
// holds, or of a mask's blocks that its queries see, not with their length.
RankParts MakeRankParts(const AttentionPlan& plan, int rank);

}  // namespace ringmaster::attention
