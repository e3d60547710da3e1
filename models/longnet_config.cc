#include "models/longnet_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::models {
namespace {

absl::Status CheckPositive(const char* field, int64_t value) {
  return value >= 1 ? absl::OkStatus()
                    : absl::InvalidArgumentError(
                          absl::StrCat("model.", field, " is ", value, "; it must be at least 1"));
}

// XPOS writes the decay between a query and a key as the quotient of two factors, each relative to
// a segment that holds both: that needs one kind of segment that contains all others, short enough
// for gradients of what is scaled by the factors.
absl::Status CheckXpos(const attention::DilatedAttentionOptions& attention) {
  int64_t longest = 0;
  for (const attention::Branch& branch : attention.branches) {
    longest = std::max(longest, branch.segment_length);
  }
  if (longest > kLongestXposSegment) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.positions XPOS with a segment of ", longest, " tokens; beyond ", kLongestXposSegment,
        " its factors are above 2^58 and small gradients underflow, use ROTARY"));
  }
  for (const attention::Branch& branch : attention.branches) {
    if (longest % branch.segment_length != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.positions XPOS needs segment lengths that divide the longest one; ",
                       branch.segment_length, " does not divide ", longest, ", use ROTARY"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBlocks(const LongNetConfig& config) {
  if (config.attention != attention::DilatedAttentionOptions()) {
    return absl::InvalidArgumentError(
        "model.blocks is given beside model.attention; attention is of blocks or of branches");
  }
  const attention::BlockPattern& blocks = *config.blocks;
  RETURN_IF_ERROR(blocks.Validate());
  if (blocks.kind == attention::BlockPattern::Kind::kHierarchical) {
    return absl::InvalidArgumentError(
        "model.blocks.kind is hierarchical; its mask follows from who holds which tokens, and the "
        "model would be another one on another ring");
  }
  if (!blocks.causal) {
    return absl::InvalidArgumentError("model.blocks.causal is false; models are causal");
  }
  if (blocks.heads != 1 && blocks.heads != config.heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.blocks.heads is ", blocks.heads, "; it must be 1 or model.heads, ", config.heads));
  }
  if (config.positions == Positions::kXpos) {
    return absl::InvalidArgumentError(
        "model.positions XPOS with model.blocks; a mask has no longest segment to which the decay "
        "could be relative, use ROTARY");
  }
  return absl::OkStatus();
}

absl::Status CheckBranches(const LongNetConfig& config) {
  RETURN_IF_ERROR(config.attention.Validate());
  if (!config.attention.documents.empty()) {
    return absl::InvalidArgumentError(
        "model.attention.documents is given; models take each sequence for one document");
  }
  return config.positions == Positions::kXpos ? CheckXpos(config.attention) : absl::OkStatus();
}

double XavierStddev(int64_t fan_in, int64_t fan_out, double gain) {
  return gain * std::sqrt(2.0 / static_cast<double>(fan_in + fan_out));
}

class SpecBuilder {
 public:
  void Norm(const std::string& name, int64_t size) {
    specs_.push_back({name + ".weight", {size}, false, 1, 0});
    specs_.push_back({name + ".bias", {size}, false, 0, 0});
  }
  void Linear(const std::string& name, int64_t out, int64_t in, double gain) {
    specs_.push_back({name + ".weight", {out, in}, true, 0, XavierStddev(in, out, gain)});
    specs_.push_back({name + ".bias", {out}, false, 0, 0});
  }
  void Table(const std::string& name, int64_t rows, int64_t columns) {
    specs_.push_back({name, {rows, columns}, true, 0, 0.02});
  }
  std::vector<ParameterSpec> Take() { return std::move(specs_); }

 private:
  std::vector<ParameterSpec> specs_;
};

}  // namespace

absl::Status LongNetConfig::Validate() const {
  RETURN_IF_ERROR(CheckPositive("layers", layers));
  RETURN_IF_ERROR(CheckPositive("dim", dim));
  RETURN_IF_ERROR(CheckPositive("heads", heads));
  RETURN_IF_ERROR(CheckPositive("kv_heads", kv_heads));
  RETURN_IF_ERROR(CheckPositive("ffn_dim", ffn_dim));
  RETURN_IF_ERROR(CheckPositive("vocab_size", vocab_size));
  if (dim % heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.dim is ", dim, "; it must be a multiple of model.heads, ", heads));
  }
  if (heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.heads is ", heads, "; it must be a multiple of model.kv_heads, ", kv_heads));
  }
  if (positions != Positions::kNone && head_dim() % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("model.dim / model.heads is ", head_dim(),
                                                   "; rotary positions need an even head size"));
  }
  return blocks.has_value() ? CheckBlocks(*this) : CheckBranches(*this);
}

absl::StatusOr<attention::AttentionPattern> LongNetConfig::Pattern(int64_t tokens) const {
  if (!blocks.has_value()) return attention;
  ASSIGN_OR_RETURN(attention::BlockMask mask, MakeBlockMask(*blocks, tokens));
  return attention::BlockSparseAttentionOptions{.mask = std::move(mask)};
}

int64_t ParameterSpec::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= size;
  }
  return count;
}

std::vector<ParameterSpec> ParameterSpecs(const LongNetConfig& config) {
  // MAGNETO: with sub-LN, values and everything after them start larger by sqrt(log(2 layers)).
  const double gamma =
      config.sub_ln ? std::sqrt(std::log(2.0 * static_cast<double>(config.layers))) : 1.0;
  const int64_t kv_dim = config.kv_heads * config.head_dim();
  SpecBuilder build;
  build.Table("embedding.weight", config.vocab_size, config.dim);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    build.Norm(prefix + "attention_norm", config.dim);
    build.Linear(prefix + "attention.query", config.dim, config.dim, 1);
    build.Linear(prefix + "attention.key", kv_dim, config.dim, 1);
    build.Linear(prefix + "attention.value", kv_dim, config.dim, gamma);
    if (config.sub_ln) {
      build.Norm(prefix + "attention.sub_norm", config.dim);
    }
    build.Linear(prefix + "attention.output", config.dim, config.dim, gamma);
    build.Norm(prefix + "ffn_norm", config.dim);
    build.Linear(prefix + "ffn.up", config.ffn_dim, config.dim, gamma);
    if (config.sub_ln) {
      build.Norm(prefix + "ffn.sub_norm", config.ffn_dim);
    }
    build.Linear(prefix + "ffn.down", config.dim, config.ffn_dim, gamma);
  }
  build.Norm("final_norm", config.dim);
  if (!config.tied_embeddings) {
    build.Table("output.weight", config.vocab_size, config.dim);
  }
  return build.Take();
}

}  // namespace ringmaster::models
