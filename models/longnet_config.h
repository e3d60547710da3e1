#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/plan/block_patterns.h"
#include "attention/plan/options.h"

namespace ringmaster::models {

enum class Positions { kNone, kRotary, kXpos };

// The longest segment of a model with XPOS. Its factors are at most 3.5^(segment / 1024), here
// 2^58, and gradients of scaled queries and keys are smaller by that: from 2^(58 - 126) = 3e-21 on
// they are normal numbers of fp32 and bf16. Those of a segment twice as long would be from 2^-10
// on.
constexpr int64_t kLongestXposSegment = 32768;

// A LongNet decoder: pre-LN blocks of dilated, or block-sparse, attention and a GELU feed-forward
// block, with MAGNETO's extra LayerNorms (sub-LN) and initialisation. Plain values.
struct LongNetConfig {
  int64_t layers = 0;
  int64_t dim = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t ffn_dim = 0;
  int64_t vocab_size = 0;
  Positions positions = Positions::kRotary;
  bool tied_embeddings = true;
  bool sub_ln = true;
  // Always causal, with the default scale; each sequence is one document.
  attention::DilatedAttentionOptions attention;
  // In place of branches, of which there are none then: a mask of blocks, of 1 or `heads` heads.
  // Not hierarchical: the model would be another one on a ring of another size.
  std::optional<attention::BlockPattern> blocks;

  int64_t head_dim() const { return dim / heads; }

  // What is computed over sequences of `tokens`. Makes the mask, which takes a while
  // (LongNet::Pattern keeps it). InvalidArgument when it has too many blocks. REQUIRES: Validate()
  // is OK.
  absl::StatusOr<attention::AttentionPattern> Pattern(int64_t tokens) const;

  // InvalidArgument naming the field, its value and the limit: sizes < 1, dim not a multiple of
  // heads, heads not of kv_heads, rotary or XPOS with an odd head size, documents, blocks
  // beside branches, XPOS with blocks or with branches for which its decay cannot be written
  // relative to a segment (see models/positions.h).
  absl::Status Validate() const;

  friend bool operator==(const LongNetConfig&, const LongNetConfig&) = default;
};

// One trainable tensor. Names are stable: checkpoints use them, and so do readers in other
// languages.
//   embedding.weight                            [vocab, dim]
//   layers.{i}.attention_norm.{weight,bias}     [dim]
//   layers.{i}.attention.query.{weight,bias}    [dim, dim], [dim]
//   layers.{i}.attention.key.{weight,bias}      [kv_heads * head_dim, dim], ...
//   layers.{i}.attention.value.{weight,bias}    as key
//   layers.{i}.attention.sub_norm.{weight,bias} [dim]      with sub_ln
//   layers.{i}.attention.output.{weight,bias}   [dim, dim], [dim]
//   layers.{i}.ffn_norm.{weight,bias}           [dim]
//   layers.{i}.ffn.up.{weight,bias}             [ffn_dim, dim], [ffn_dim]
//   layers.{i}.ffn.sub_norm.{weight,bias}       [ffn_dim]  with sub_ln
//   layers.{i}.ffn.down.{weight,bias}           [dim, ffn_dim], [dim]
//   final_norm.{weight,bias}                    [dim]
//   output.weight                               [vocab, dim]   unless tied_embeddings
// A linear layer computes x W^T + b.
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  // Biases and norms are not decayed.
  bool decayed = false;
  // Initial value: `mean` plus a normal deviate of this standard deviation.
  double mean = 0;
  double stddev = 0;

  int64_t elements() const;
};

// All parameters of a model, in a fixed order: embedding, blocks, final norm, output. REQUIRES:
// config.Validate() is OK.
std::vector<ParameterSpec> ParameterSpecs(const LongNetConfig& config);

}  // namespace ringmaster::models
