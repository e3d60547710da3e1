#include "proto/attention_spec.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

using attention::BlockPattern;
using attention::MixGradient;
using attention::OffsetMode;
using v1::BlockSparseSpec;

constexpr std::pair<BlockSparseSpec::Kind, BlockPattern::Kind> kKinds[] = {
    {BlockSparseSpec::LOCAL_WINDOW, BlockPattern::Kind::kLocalWindow},
    {BlockSparseSpec::DILATED_SPARSE, BlockPattern::Kind::kDilatedSparse},
    {BlockSparseSpec::GLOBAL_LOCAL, BlockPattern::Kind::kGlobalLocal},
    {BlockSparseSpec::HIERARCHICAL, BlockPattern::Kind::kHierarchical},
    {BlockSparseSpec::RANDOM, BlockPattern::Kind::kRandom}};

}  // namespace

absl::StatusOr<attention::DilatedAttentionOptions> BranchesFromSpec(const v1::AttentionSpec& spec) {
  if (spec.segment_lengths_size() != spec.dilation_rates_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention has ", spec.segment_lengths_size(), " segment_lengths and ",
                     spec.dilation_rates_size(), " dilation_rates; they must be as many"));
  }
  attention::DilatedAttentionOptions options;
  for (int i = 0; i < spec.segment_lengths_size(); ++i) {
    options.branches.push_back({spec.segment_lengths(i), spec.dilation_rates(i)});
  }
  options.offset_mode =
      spec.offset_mode() == v1::TORCHSCALE ? OffsetMode::kTorchscale : OffsetMode::kPaper;
  options.mix_gradient =
      spec.mix_gradient() == v1::DETACHED ? MixGradient::kDetached : MixGradient::kExact;
  return options;
}

absl::StatusOr<BlockPattern> BlocksFromSpec(const BlockSparseSpec& spec, int64_t heads) {
  const auto* const kind =
      std::find_if(std::begin(kKinds), std::end(kKinds),
                   [&](const auto& kinds) { return kinds.first == spec.kind(); });
  if (kind == std::end(kKinds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention.block_sparse.kind has the unknown value ", spec.kind()));
  }
  return BlockPattern{.kind = kind->second,
                      .density = spec.density(),
                      .heads = spec.per_head() ? heads : 1,
                      .block_size = spec.block_size(),
                      .seed = spec.seed()};
}

void SetBranches(const attention::DilatedAttentionOptions& branches, v1::AttentionSpec& spec) {
  for (const attention::Branch& branch : branches.branches) {
    spec.add_segment_lengths(branch.segment_length);
    spec.add_dilation_rates(branch.dilation_rate);
  }
  spec.set_offset_mode(branches.offset_mode == OffsetMode::kTorchscale ? v1::TORCHSCALE
                                                                       : v1::PAPER);
  spec.set_mix_gradient(branches.mix_gradient == MixGradient::kDetached ? v1::DETACHED : v1::EXACT);
}

void SetBlocks(const BlockPattern& blocks, BlockSparseSpec& spec) {
  for (const auto& [kind, of_pattern] : kKinds) {
    if (of_pattern == blocks.kind) spec.set_kind(kind);
  }
  spec.set_density(blocks.density);
  spec.set_block_size(static_cast<int32_t>(blocks.block_size));
  spec.set_seed(blocks.seed);
  spec.set_per_head(blocks.heads > 1);
}

}  // namespace ringmaster
