#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "attention/parts/rank_parts.h"
#include "attention/parts/rows.h"
#include "attention/plan/options.h"
#include "attention/plan/shard_map.h"
#include "attention/tiles/placed_tiles.h"
#include "attention/tiles/tile_lists.h"

namespace ringmaster::attention {

// RankParts made ready for a device. Immutable; thread-safe.
class PlacedParts {
 public:
  struct Dense {
    const Part* part;
    PlacedRows queries;
    PlacedRows keys;
    at::Tensor gates;  // the part's on the device; undefined without gates
  };
  struct Alone {
    PlacedRows queries;
    PlacedRows keys;
  };

  // With a shape for kernels over tiles the parts become lists of tiles, else row sets for stock
  // operations.
  PlacedParts(RankParts parts, int heads, int kv_heads, at::Device device,
              const std::optional<TileShape>& tiles);
  PlacedParts(const PlacedParts&) = delete;
  PlacedParts& operator=(const PlacedParts&) = delete;

  // Without its parts where there are tiles instead, and without its messages' rows.
  const RankParts& parts() const { return parts_; }
  // Null, or instead of local(), far() and alone().
  const PlacedTiles* tiles() const { return tiles_.get(); }
  const std::vector<Dense>& local() const { return local_; }
  const std::vector<Dense>& far() const { return far_; }
  const Alone& alone() const { return *alone_; }
  // The local rows of the send buffer, from its first to its last, and those that are kept in the
  // pool: one group. Without tiles, which have lists of their own of them.
  const PlacedRows& outgoing() const { return *outgoing_; }
  const PlacedRows& kept() const { return *kept_; }
  // Sets to zero what is zero whatever the numbers are (zero_gradients.h), and no more than their
  // rounding in the rank's gradients [B, T, H, D] and [B, T, Hkv, D], contiguous.
  void SetKnownZeros(const at::Tensor& dq, const at::Tensor& dk) const;
  size_t bytes() const;

 private:
  RankParts parts_;
  std::unique_ptr<const PlacedTiles> tiles_;
  std::vector<Dense> local_;
  std::vector<Dense> far_;
  std::optional<Alone> alone_;
  RowSet sent_, held_;  // what these two are of
  std::optional<PlacedRows> outgoing_, kept_;
  at::Tensor zero_dq_, zero_dk_;  // places on the device
};

// The parts of `rank`, from a cache of the process that holds at most 1 GiB, or one entry, and
// forgets the longest unused first. Of patterns that differ in nothing but their documents or
// blocks it holds four: such are packed sequences, of one step each, and masks that are chosen. But
// those of a mask with gates are made anew, since such masks are chosen for one call. Thread-safe;
// callers on different streams of one device keep theirs until that device is done with it.
// REQUIRES: pattern valid, heads a multiple of kv_heads, rank below map.ranks(), `tiles` of this
// rank.
std::shared_ptr<const PlacedParts> FindParts(const AttentionPattern& pattern, const ShardMap& map,
                                             int rank, int heads, int kv_heads, at::Device device,
                                             const std::optional<TileShape>& tiles);

}  // namespace ringmaster::attention
