#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/output.h"
#include "attention/plan/options.h"

namespace ringmaster::attention {

// How blocks of keys are chosen by content.
struct AdaptiveBlocksOptions {
  int64_t heads = 1;
  int64_t kv_heads = 1;  // query heads of one key/value head choose together
  int64_t head_dim = 64;
  int64_t score_dim = 32;    // of the summaries whose product is a score
  int64_t block_size = 128;  // or 64
  int64_t chosen = 8;        // blocks of keys a block of queries chooses, if there are so many
  int64_t sinks = 1;         // first blocks of the sequence, which all see, as each does its own
  bool causal = true;
  // Whether a chosen block's keys count, in the softmax of the queries that chose it, as much as
  // the softmax of its score over the chosen blocks: the way on which scores learn. Else they count
  // 1, as those of the own block and the sinks always do.
  bool gated = true;
  std::optional<double> scale;  // of the attention, as BlockSparseAttentionOptions has it

  // InvalidArgument naming the field.
  absl::Status Validate() const;
};

// What was chosen for one batch of sequences. The mask is of batch * heads heads, those of a
// sequence after each other.
struct BlockChoice {
  BlockSparseAttentionOptions options;
  // [1, pairs], differentiable in q, k and the parameters; undefined if not gated.
  at::Tensor log_gates;
  double density = 0;  // as BlockMask::Density
  // Of the scores' softmax over all blocks that could be chosen, of that of equal scores, mean over
  // those who had a choice: 1 knows nothing, 0 is sure. 0 if nobody had a choice.
  double entropy = 0;
};

// Chooses for each sequence, key/value head and block of queries the blocks of keys with the
// highest scores, the first of equal ones. A score is the product of a summary of the queries and
// one of the keys: of keys by learnt weights over the block's tokens, of queries by the block's
// first query and the mean of the block before. Causal, only past blocks can be chosen, and so
// nothing decides about a query that is behind it: its block's first token is the last that all of
// its queries know. Not causal, the mean of the block's own queries takes the place of the first.
//
// One rank. Time and memory grow with tokens * chosen, but for the scores themselves, which are
// made a few blocks of queries at a time, and the mask's bits. Immutable but for its parameters.
class AdaptiveBlocks {
 public:
  // Parameters of `tensor_options`, fp32 or fp64, the same for the same seed. InvalidArgument as
  // Validate.
  static absl::StatusOr<AdaptiveBlocks> Create(const AdaptiveBlocksOptions& options, uint64_t seed,
                                               const at::TensorOptions& tensor_options);

  const AdaptiveBlocksOptions& options() const { return options_; }
  // Leaves of the graph, to be trained.
  std::vector<at::Tensor> parameters() const {
    return {query_own_, query_before_, key_, key_weight_};
  }

  // q [B, N, H, D] and k [B, N, Hkv, D], N >= 1, of any floating type on the parameters' device.
  // With a seed, Gumbel noise is added to the scores by which blocks are chosen, but not to those
  // that become gates: for training. Throws c10::Error naming what does not fit.
  BlockChoice Choose(const at::Tensor& q, const at::Tensor& k,
                     std::optional<uint64_t> noise_seed = {}) const;

 private:
  explicit AdaptiveBlocks(const AdaptiveBlocksOptions& options) : options_(options) {}

  struct Summaries {
    at::Tensor queries, keys;  // [B * Hkv, blocks, score_dim]
  };
  Summaries Summarize(const at::Tensor& q, const at::Tensor& k) const;
  // The gates of pairs that may or may not be there: [B * Hkv, blocks, slots].
  at::Tensor LogGates(const Summaries& summaries, const at::Tensor& key_blocks) const;

  AdaptiveBlocksOptions options_;
  at::Tensor query_own_, query_before_;  // [H, D, score_dim]
  at::Tensor key_;                       // [Hkv, D, score_dim]
  at::Tensor key_weight_;                // [Hkv, D]
};

// Block-sparse attention to what was chosen for these sequences: as BlockSparseAttention, but that
// each sequence has its own mask.
AttentionOutput AttendToChoice(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const BlockChoice& choice);

}  // namespace ringmaster::attention
