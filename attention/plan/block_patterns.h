#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/plan/block_mask.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// A rule that makes a mask of blocks. Every block sees itself.
struct BlockPattern {
  enum class Kind {
    kLocalWindow,    // so many blocks before a query's, and behind it
    kDilatedSparse,  // neighbours, and ever fewer with the distance: every 2nd, 4th, 8th, ...
    kGlobalLocal,    // a window, and the first blocks, which see all: a quarter of the budget
    kHierarchical,   // all blocks of the own node's ranks, and evenly spread ones of the others'
    kRandom,         // evenly drawn ones
  };

  Kind kind = Kind::kLocalWindow;
  // Of the visible pairs, as BlockMask::Density counts them: the mask comes as close to it as the
  // kind can. (0, 1].
  double density = 0.1;
  bool causal = true;
  // Masks of the kinds that are drawn or spread differ by head if more than 1; those of the others
  // have one for all.
  int64_t heads = 1;
  int64_t block_size = 128;
  uint64_t seed = 0;  // of kRandom

  // InvalidArgument naming the field.
  absl::Status Validate() const;

  friend bool operator==(const BlockPattern&, const BlockPattern&) = default;
};

// The mask of a sequence that lies as `map` says, with `ranks_per_node` ranks after each other on
// one node, which is all that kHierarchical looks at; a block is where its first token is. Follows
// from the arguments alone, the same on every machine. InvalidArgument naming the field.
absl::StatusOr<BlockMask> MakeBlockMask(const BlockPattern& pattern, const ShardMap& map,
                                        int ranks_per_node);

// The same of the kinds that do not look at who holds which tokens; InvalidArgument of
// kHierarchical too.
absl::StatusOr<BlockMask> MakeBlockMask(const BlockPattern& pattern, int64_t tokens);

// Patterns by name: local_window_25 has a density of 25 %. InvalidArgument with all names for
// another.
absl::StatusOr<BlockPattern> FindBlockPattern(std::string_view name);
std::vector<std::string> BlockPatternNames();

}  // namespace ringmaster::attention
