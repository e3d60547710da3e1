#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/dropout.h"
#include "attention/exchange/exchange.h"
#include "attention/plan/plan.h"
#include "attention/plan/shard_map.h"
#include "models/dropout.h"
#include "models/longnet_config.h"
#include "models/positions.h"

namespace ringmaster::models {

// Where a pass over the model stands; `layer` is -1 in kEmbedding and kLoss.
enum class Phase { kEmbedding, kForward, kLoss, kBackward };
using PhaseHook = std::function<void(Phase phase, int64_t layer)>;

// The part of each sequence that this rank holds; made by LongNet::Place. `exchange` is borrowed
// and may be null when the map has one rank.
struct SequenceShard {
  attention::ShardMap map;
  attention::AttentionPattern pattern;
  int rank = 0;
  attention::GroupedExchange* exchange = nullptr;
  attention::Strategy strategy = attention::Strategy::kGrouped;
  RotaryTables rotary;
  at::Tensor positions;  // [n] int64: the global position of each local token
};

// The LongNet decoder as functions of its parameters. Tensors below have n = this rank's local
// tokens, which may be 0; B sequences. All ranks of a shard's exchange must make the same calls.
//
// Backward runs block by block, each with a graph of its own, so that the order of exchanges is
// fixed, memory is bounded, and recomputing a block needs no special case.
//
// Functions throw c10::Error or attention::ExchangeError; worker/torch_status turns them into a
// Status. Immutable, thread-safe.
class LongNet {
 public:
  // InvalidArgument as LongNetConfig::Validate.
  static absl::StatusOr<LongNet> Create(LongNetConfig config);

  const LongNetConfig& config() const { return config_; }

  // As LongNetConfig's, which makes a mask anew only for another number of tokens than last time.
  absl::StatusOr<attention::AttentionPattern> Pattern(int64_t tokens) const;

  // `options` names the device and the compute dtype. REQUIRES: 0 <= rank < map.ranks().
  SequenceShard Place(attention::ShardMap map, int rank, attention::GroupedExchange* exchange,
                      const at::TensorOptions& options,
                      attention::Strategy strategy = attention::Strategy::kGrouped) const;

  struct PassOptions {
    // Keep only the inputs of blocks and compute each block again in backward, its exchanges
    // included: every rank must choose the same.
    bool recompute = false;
    // Share of the channels of the embedding and of what blocks add that is dropped; [0, 1).
    double dropout = 0;
    // Probability with which each of attention's probabilities is dropped; [0, 1).
    double attention_dropout = 0;
    // DropoutSeed of each of the B sequences. REQUIRED with dropout of either kind.
    std::vector<uint64_t> dropout_seeds;
    // Called before each part of the pass; may throw. For fault injection and progress.
    PhaseHook hook;
  };

  // Adds the gradient of `scale` * (sum of the negative log likelihoods of this rank's labels) to
  // `gradients` and returns that sum, unscaled, as a scalar tensor in fp64.
  //   parameters  in the order of ParameterSpecs, of the compute dtype, all on one device
  //   gradients   as parameters, of fp32 (fp64 for fp64 parameters): accumulators, added to
  //   tokens, labels  [B, n] int64; a label of -1 is not counted
  at::Tensor ForwardBackward(absl::Span<const at::Tensor> parameters, const SequenceShard& shard,
                             const at::Tensor& tokens, const at::Tensor& labels, double scale,
                             absl::Span<const at::Tensor> gradients,
                             const PassOptions& options) const;

  // The same sum without gradients.
  at::Tensor NegativeLogLikelihood(absl::Span<const at::Tensor> parameters,
                                   const SequenceShard& shard, const at::Tensor& tokens,
                                   const at::Tensor& labels) const;

  // Final norm and output projection of what the last block gave: [rows, dim] -> [rows, vocab].
  at::Tensor OutputOf(absl::Span<const at::Tensor> parameters, const at::Tensor& x) const;

  // [B, n, vocab] in the compute dtype, without gradients: for tests and short sequences.
  at::Tensor Logits(absl::Span<const at::Tensor> parameters, const SequenceShard& shard,
                    const at::Tensor& tokens) const;

 private:
  struct LastPattern;
  // What a training pass drops: of channels, and of attention's probabilities, where a layer is a
  // call.
  struct Drops {
    Dropout channels;
    attention::AttentionDropout probabilities;
  };

  explicit LongNet(LongNetConfig config);

  // A block's parameters; the final norm's and the output projection's place in all parameters.
  absl::Span<const at::Tensor> Block(absl::Span<const at::Tensor> parameters, int64_t layer) const;
  int64_t FinalNorm() const;
  int64_t Output() const;

  at::Tensor RunBlock(absl::Span<const at::Tensor> block, const SequenceShard& shard,
                      const at::Tensor& x, const Drops& drops, int64_t layer) const;
  // Adds the gradients of loss, final norm and output projection; writes that of x into dx.
  at::Tensor OutputLoss(absl::Span<const at::Tensor> parameters, const at::Tensor& x,
                        const at::Tensor& labels, double scale,
                        absl::Span<const at::Tensor> gradients, at::Tensor& dx) const;
  at::Tensor RunBlocks(absl::Span<const at::Tensor> parameters, const SequenceShard& shard,
                       const at::Tensor& tokens) const;

  LongNetConfig config_;
  std::shared_ptr<LastPattern> last_pattern_;
};

}  // namespace ringmaster::models
