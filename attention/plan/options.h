#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "attention/plan/block_mask.h"

namespace ringmaster::attention {

// Where the documents of a sequence start: global tokens, ascending, the first of them 0; none: the
// sequence is one document. No query sees a key of another document than its own.
using Documents = std::vector<int64_t>;

// One (w, r) pair. Tokens are cut into segments of `segment_length`; within a segment every
// `dilation_rate`-th token attends to every `dilation_rate`-th token. Both are given as the user
// wrote them: the operator clamps w to the number of tokens itself, and both may exceed 32 bits.
// Each document is cut by itself, from its first token on.
struct Branch {
  int64_t segment_length = 0;
  int64_t dilation_rate = 0;

  friend bool operator==(const Branch&, const Branch&) = default;
};

// Which residue of a segment a head selects. With H heads, head j selects the tokens whose position
// in the segment is congruent to
//   kPaper:      j mod r
//   kTorchscale: floor(j / ceil(H / r))
// Weights trained under one do not transfer to the other.
enum class OffsetMode { kPaper, kTorchscale };

// Whether gradients flow through the weights with which the branches are mixed.
//   kExact:    yes: the gradient of one softmax over the multiset union of keys.
//   kDetached: no: the weights are constants, as in torchscale.
enum class MixGradient { kExact, kDetached };

// The heads at hand as a part of an operator's: `first`, first + 1, ... of `of`; of none: all.
struct HeadShare {
  int64_t first = 0;
  int64_t of = 0;

  // InvalidArgument when `heads` heads from the first on are not all of an operator's.
  absl::Status Validate(int64_t heads) const;

  friend bool operator==(const HeadShare&, const HeadShare&) = default;
};

// What the dilated attention operator computes (the exact words are in the design note, section 6).
// Equal branches are legal and count twice, also when they become equal only by clamping.
struct DilatedAttentionOptions {
  std::vector<Branch> branches;
  bool causal = true;
  OffsetMode offset_mode = OffsetMode::kPaper;
  MixGradient mix_gradient = MixGradient::kExact;
  // A head selects what it selects among all of them.
  HeadShare share;
  // Factor on the scores, any finite number, zero and negative included; unset means 1 / sqrt(head
  // size).
  std::optional<double> scale;
  Documents documents;

  // InvalidArgument naming the branch, its value and the limit: no branch, w < 1, r < 1, r > w,
  // scale not finite, documents not ascending from 0.
  absl::Status Validate() const;

  friend bool operator==(const DilatedAttentionOptions&, const DilatedAttentionOptions&) = default;
};

// In which order kernels take the tiles of a head. Results are the same.
//   kHeavyFirst: those with most work first.
//   kHilbert:    along a Hilbert curve over the tile's place and the middle of what it sees:
//                neighbours in time read what lies near.
enum class TileOrder { kHeavyFirst, kHilbert };

// What the block-sparse attention operator computes: each query sees the keys of the blocks that
// the mask shows to its block, of those of its own document, under one softmax; causal, only those
// not behind it. Documents start anywhere in a block.
struct BlockSparseAttentionOptions {
  BlockMask mask;
  bool causal = true;
  std::optional<double> scale;  // as above
  TileOrder tile_order = TileOrder::kHeavyFirst;
  // Whether each visible pair of blocks has a gate g, which comes with the tensors: the keys of the
  // pair count g times in the softmaxes of its queries.
  bool gated = false;
  Documents documents;

  // InvalidArgument naming the field unless the mask is of `tokens` and of 1 or `heads` heads,
  // scale finite, and documents are ascending from 0.
  absl::Status Validate(int64_t tokens, int64_t heads) const;

  friend bool operator==(const BlockSparseAttentionOptions&,
                         const BlockSparseAttentionOptions&) = default;
};

// What attention is asked to compute.
using AttentionPattern = std::variant<DilatedAttentionOptions, BlockSparseAttentionOptions>;

// As the options', for a sequence of `tokens` and `heads` query heads, which are within their
// share; documents start within it.
absl::Status Validate(const AttentionPattern& pattern, int64_t tokens, int64_t heads);

const Documents& DocumentsOf(const AttentionPattern& pattern);

// The pattern of the query heads [first, first + count) of `heads` alone. REQUIRES: valid for
// `heads`.
AttentionPattern HeadsOf(const AttentionPattern& pattern, int64_t first, int64_t count,
                         int64_t heads);

// The softmaxes that are mixed: branches, one for a mask.
int Branches(const AttentionPattern& pattern);

// The residue that `head` of `heads` selects at dilation `rate`; always below `rate`. REQUIRES: 0
// <= head < heads, rate >= 1.
int64_t HeadOffset(OffsetMode mode, int64_t head, int64_t heads, int64_t rate);
// The same for a head at hand, of `heads` at hand.
int64_t HeadOffset(const DilatedAttentionOptions& options, int64_t head, int64_t heads,
                   int64_t rate);

}  // namespace ringmaster::attention
