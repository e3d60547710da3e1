#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "attention/plan/block_patterns.h"
#include "base/status_macros.h"
#include "coordinator/core/presets.h"
#include "coordinator/core/spec.h"
#include "proto/attention_spec.h"

// Attention: branches or a mask of blocks, their defaults, and the rules between their fields.
namespace ringmaster::coordinator {
namespace {

using attention::BlockPattern;
using v1::BlockSparseSpec;

constexpr int kBranchesMax = 32;
// In longer segments XPOS has factors above 2^58 (models/longnet_config.h), and small gradients
// underflow.
constexpr int64_t kXposSegmentMax = 32768;
// Of a job's masks, 32 MiB, which a rank takes seconds to make while its peers wait.
constexpr double kMaskBitsMax = 0x1p28;
// Of blocks that lie apart and that a rank's queries see: each is a span in the lists that it works
// by, forward and backward, of about 50 bytes and 2 us to make.
constexpr double kSpansMax = 0x1p26;

void CheckBranches(const v1::AttentionSpec& attention, Violations* v) {
  if (attention.segment_lengths_size() != attention.dilation_rates_size()) {
    v->Field("attention.dilation_rates",
             absl::StrFormat("has %d values for %d segment lengths; each branch needs one of both",
                             attention.dilation_rates_size(), attention.segment_lengths_size()));
    return;
  }
  if (attention.segment_lengths_size() > kBranchesMax) {
    v->Field("attention.segment_lengths",
             absl::StrFormat("has %d branches; at most %d are allowed",
                             attention.segment_lengths_size(), kBranchesMax));
    return;
  }
  for (int i = 0; i < attention.segment_lengths_size(); ++i) {
    const int64_t w = attention.segment_lengths(i);
    const int64_t r = attention.dilation_rates(i);
    const std::string rate = absl::StrFormat("attention.dilation_rates[%d]", i);
    if (w < 1) {
      v->Shape(absl::StrFormat("attention.segment_lengths[%d]", i), w, 0, {1},
               "segment_length >= 1");
    } else if (r < 1) {
      v->Shape(rate, r, 0, {1}, "1 <= dilation_rate <= segment_length");
    } else if (r > w) {
      v->Shape(rate, r, 0, {w}, "1 <= dilation_rate <= segment_length");
    }
  }
}

void CheckXpos(const v1::AttentionSpec& attention, Violations* v) {
  int64_t longest = 0;
  for (const int64_t w : attention.segment_lengths()) longest = std::max(longest, w);
  if (longest > kXposSegmentMax) {
    v->Field("model.positions",
             absl::StrFormat("is XPOS, and a segment has %d tokens; beyond %d its factors are "
                             "above 2^58 and small gradients underflow; use ROTARY",
                             longest, kXposSegmentMax));
    return;
  }
  for (const int64_t w : attention.segment_lengths()) {
    if (w >= 1 && longest % w != 0) {
      v->Field("model.positions",
               absl::StrFormat("XPOS needs segment lengths that divide the longest one; %d does "
                               "not divide %d; use ROTARY",
                               w, longest));
      return;
    }
  }
}

void ResolveBranches(const ModelPreset* preset, v1::AttentionSpec* attention, Violations* v) {
  if (attention->segment_lengths().empty() && attention->dilation_rates().empty()) {
    if (preset == nullptr) {
      v->Field("attention.segment_lengths", "is required when model.preset is not set");
      return;
    }
    attention->mutable_segment_lengths()->Assign(preset->segment_lengths.begin(),
                                                 preset->segment_lengths.end());
    attention->mutable_dilation_rates()->Assign(preset->dilation_rates.begin(),
                                                preset->dilation_rates.end());
  }
  if (attention->offset_mode() == v1::OFFSET_MODE_UNSPECIFIED)
    attention->set_offset_mode(v1::PAPER);
  if (attention->mix_gradient() == v1::MIX_GRADIENT_UNSPECIFIED) {
    attention->set_mix_gradient(v1::EXACT);
  }
  if (!v1::OffsetMode_IsValid(attention->offset_mode())) {
    v->Field("attention.offset_mode",
             absl::StrCat("has the unknown value ", attention->offset_mode()));
  }
  if (!v1::MixGradient_IsValid(attention->mix_gradient())) {
    v->Field("attention.mix_gradient",
             absl::StrCat("has the unknown value ", attention->mix_gradient()));
  }
  CheckBranches(*attention, v);
}

// Branches have no part in attention over blocks.
void RefuseBranches(const v1::AttentionSpec& attention, Violations* v) {
  const std::pair<const char*, bool> fields[] = {
      {"segment_lengths", !attention.segment_lengths().empty()},
      {"dilation_rates", !attention.dilation_rates().empty()},
      {"offset_mode", attention.offset_mode() != v1::OFFSET_MODE_UNSPECIFIED},
      {"mix_gradient", attention.mix_gradient() != v1::MIX_GRADIENT_UNSPECIFIED}};
  for (const auto& [field, given] : fields) {
    if (given) {
      v->Field(absl::StrCat("attention.", field),
               "is of branches, and attention.block_sparse is in their place; give one of both");
    }
  }
}

// What is unset, from the preset. False when there is no such preset.
bool FillInBlocks(BlockSparseSpec* blocks, Violations* v) {
  BlockPattern pattern;
  if (!blocks->preset().empty()) {
    const absl::StatusOr<BlockPattern> found = attention::FindBlockPattern(blocks->preset());
    if (!found.ok()) {
      v->Field("attention.block_sparse.preset", found.status().message());
      return false;
    }
    pattern = *found;
    BlockSparseSpec preset;
    SetBlocks(pattern, preset);
    if (blocks->kind() == BlockSparseSpec::KIND_UNSPECIFIED) blocks->set_kind(preset.kind());
    if (blocks->density() == 0) blocks->set_density(preset.density());
  }
  if (blocks->block_size() == 0) blocks->set_block_size(static_cast<int32_t>(pattern.block_size));
  return true;
}

void CheckBlocks(const BlockSparseSpec& blocks, Violations* v) {
  const std::string field = "attention.block_sparse.";
  if (blocks.kind() == BlockSparseSpec::KIND_UNSPECIFIED) {
    v->Field(field + "kind", "is required when attention.block_sparse.preset is not set");
  } else if (!BlockSparseSpec::Kind_IsValid(blocks.kind())) {
    v->Field(field + "kind", absl::StrCat("has the unknown value ", blocks.kind()));
  } else if (blocks.kind() == BlockSparseSpec::HIERARCHICAL) {
    v->Field(field + "kind",
             "is HIERARCHICAL; its mask follows from who holds which tokens, so that a ring formed "
             "anew would train another model");
  } else if (blocks.per_head() && blocks.kind() != BlockSparseSpec::RANDOM) {
    v->Field(field + "per_head",
             absl::StrCat("is set, but masks of ", BlockSparseSpec::Kind_Name(blocks.kind()),
                          " are the same for all heads; only those of RANDOM differ"));
  }
  if (blocks.density() == 0) {
    v->Field(field + "density", "is required when attention.block_sparse.preset is not set");
  } else if (!(blocks.density() > 0 && blocks.density() <= 1)) {
    v->Field(field + "density",
             absl::StrCat("is ", blocks.density(), "; it must be above 0 and at most 1"));
  }
  if (blocks.block_size() != 64 && blocks.block_size() != 128) {
    v->Shape(field + "block_size", blocks.block_size(), 0, {64, 128},
             "block_size == 64 or block_size == 128");
  }
}

double BlocksASide(const v1::TrainingJobSpec& spec) {
  return std::ceil(static_cast<double>(spec.data().sequence_length()) /
                   static_cast<double>(spec.attention().block_sparse().block_size()));
}

// Of the kinds that show single blocks; of others a row has few spans.
void CheckSpans(const v1::TrainingJobSpec& spec, Violations* v) {
  const BlockSparseSpec& blocks = spec.attention().block_sparse();
  if (blocks.kind() != BlockSparseSpec::RANDOM &&
      blocks.kind() != BlockSparseSpec::DILATED_SPARSE) {
    return;
  }
  const double squares = kSpansMax * std::max(spec.parallel().ring_size(), 1) * 2 /
                         (blocks.density() * spec.model().heads());
  if (!(BlocksASide(spec) * BlocksASide(spec) > squares)) return;
  v->Shape(
      "data.sequence_length", spec.data().sequence_length(), 0,
      {static_cast<int64_t>(std::sqrt(squares)) * blocks.block_size()},
      "density x heads x (sequence_length / attention.block_sparse.block_size)^2 / 2 <= 2^26 x "
      "parallel.ring_size");
}

void CheckMask(const v1::TrainingJobSpec& spec, Violations* v) {
  if (spec.model().heads() < 1 || spec.data().sequence_length() < 1) return;
  if (MaskBits(spec) <= kMaskBitsMax) return CheckSpans(spec, v);
  const BlockSparseSpec& blocks = spec.attention().block_sparse();
  const int heads = blocks.per_head() ? spec.model().heads() : 1;
  const auto blocks_max = static_cast<int64_t>(std::sqrt(kMaskBitsMax / heads));
  v->Shape("data.sequence_length", spec.data().sequence_length(), 0,
           {blocks_max * blocks.block_size()},
           "masks x (sequence_length / attention.block_sparse.block_size)^2 <= 2^28");
}

void ResolveBlocks(v1::TrainingJobSpec* spec, Violations* v) {
  RefuseBranches(spec->attention(), v);
  if (spec->model().positions() == v1::XPOS) {
    v->Field("model.positions",
             "is XPOS, whose decay is relative to the longest segment; attention.block_sparse has "
             "none; use ROTARY");
  }
  BlockSparseSpec* blocks = spec->mutable_attention()->mutable_block_sparse();
  if (!FillInBlocks(blocks, v)) return;
  CheckBlocks(*blocks, v);
  if (blocks->block_size() >= 64) CheckMask(*spec, v);
}

}  // namespace

void ResolveAttention(const ModelPreset* preset, v1::TrainingJobSpec* spec, Violations* v) {
  if (spec->attention().has_block_sparse()) return ResolveBlocks(spec, v);
  ResolveBranches(preset, spec->mutable_attention(), v);
  if (spec->model().positions() == v1::XPOS) CheckXpos(spec->attention(), v);
}

double MaskBits(const v1::TrainingJobSpec& spec) {
  if (!spec.attention().has_block_sparse()) return 0;
  const int masks = spec.attention().block_sparse().per_head() ? spec.model().heads() : 1;
  return masks * BlocksASide(spec) * BlocksASide(spec);
}

absl::StatusOr<attention::AttentionPattern> PatternOf(const v1::TrainingJobSpec& spec) {
  if (!spec.attention().has_block_sparse()) return BranchesFromSpec(spec.attention());
  ASSIGN_OR_RETURN(const BlockPattern pattern,
                   BlocksFromSpec(spec.attention().block_sparse(), spec.model().heads()));
  ASSIGN_OR_RETURN(attention::BlockMask mask,
                   MakeBlockMask(pattern, spec.data().sequence_length()));
  return attention::BlockSparseAttentionOptions{.mask = std::move(mask)};
}

}  // namespace ringmaster::coordinator
