#include "attention/plan/options.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::attention {

namespace {

absl::Status CheckScale(const std::optional<double>& scale) {
  if (scale.has_value() && !std::isfinite(*scale)) {
    return absl::InvalidArgumentError(
        absl::StrCat("scale is ", *scale, "; it must be a finite number or unset"));
  }
  return absl::OkStatus();
}

absl::Status CheckDocuments(const Documents& documents) {
  for (size_t i = 0; i < documents.size(); ++i) {
    if (i == 0 && documents[0] != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("documents[0] is ", documents[0], "; the first document starts at token 0"));
    }
    if (i > 0 && documents[i] <= documents[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat("documents[", i, "] is ", documents[i],
                                                     "; it must be above the one before it, ",
                                                     documents[i - 1]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status HeadShare::Validate(int64_t heads) const {
  if (of != 0 && (first < 0 || heads > of - first)) {
    return absl::InvalidArgumentError(
        absl::StrCat("share is of heads ", first, " and up of ", of, "; there are ", heads));
  }
  return absl::OkStatus();
}

absl::Status DilatedAttentionOptions::Validate() const {
  if (branches.empty()) {
    return absl::InvalidArgumentError(
        "dilated attention has no branch; give at least one (segment_length, dilation_rate) pair");
  }
  for (size_t i = 0; i < branches.size(); ++i) {
    const auto& [segment_length, dilation_rate] = branches[i];
    if (segment_length < 1) {
      return absl::InvalidArgumentError(absl::StrCat("segment_length of branch ", i, " is ",
                                                     segment_length, "; it must be at least 1"));
    }
    if (dilation_rate < 1) {
      return absl::InvalidArgumentError(absl::StrCat("dilation_rate of branch ", i, " is ",
                                                     dilation_rate, "; it must be at least 1"));
    }
    if (dilation_rate > segment_length) {
      return absl::InvalidArgumentError(absl::StrCat(
          "dilation_rate of branch ", i, " is ", dilation_rate, ", above its segment_length ",
          segment_length, "; lower the rate or lengthen the segment"));
    }
  }
  RETURN_IF_ERROR(CheckScale(scale));
  return CheckDocuments(documents);
}

absl::Status BlockSparseAttentionOptions::Validate(int64_t tokens, int64_t heads) const {
  if (mask.shape().tokens != tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens of the block mask is ", mask.shape().tokens, "; the sequence has ", tokens));
  }
  if (mask.shape().heads != 1 && mask.shape().heads != heads) {
    return absl::InvalidArgumentError(absl::StrCat("heads of the block mask is ",
                                                   mask.shape().heads, "; it must be 1 or the ",
                                                   heads, " query heads"));
  }
  RETURN_IF_ERROR(CheckScale(scale));
  return CheckDocuments(documents);
}

absl::Status Validate(const AttentionPattern& pattern, int64_t tokens, int64_t heads) {
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern);
  RETURN_IF_ERROR(dilated != nullptr
                      ? dilated->Validate()
                      : std::get<BlockSparseAttentionOptions>(pattern).Validate(tokens, heads));
  if (dilated != nullptr) RETURN_IF_ERROR(dilated->share.Validate(heads));
  const Documents& documents = DocumentsOf(pattern);
  if (!documents.empty() && documents.back() >= tokens) {
    return absl::InvalidArgumentError(absl::StrCat("documents[", documents.size() - 1, "] is ",
                                                   documents.back(), "; the sequence has ", tokens,
                                                   " tokens"));
  }
  return absl::OkStatus();
}

const Documents& DocumentsOf(const AttentionPattern& pattern) {
  return std::visit([](const auto& options) -> const Documents& { return options.documents; },
                    pattern);
}

AttentionPattern HeadsOf(const AttentionPattern& pattern, int64_t first, int64_t count,
                         int64_t heads) {
  AttentionPattern part = pattern;
  if (auto* dilated = std::get_if<DilatedAttentionOptions>(&part)) {
    const HeadShare& whole = dilated->share;
    dilated->share = {whole.first + first, whole.of == 0 ? heads : whole.of};
  } else {
    BlockMask& mask = std::get<BlockSparseAttentionOptions>(part).mask;
    if (mask.shape().heads > 1) mask = mask.Heads(first, count);
  }
  return part;
}

int Branches(const AttentionPattern& pattern) {
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern);
  return dilated == nullptr ? 1 : static_cast<int>(dilated->branches.size());
}

int64_t HeadOffset(OffsetMode mode, int64_t head, int64_t heads, int64_t rate) {
  if (mode == OffsetMode::kPaper) {
    return head % rate;
  }
  // ceil(heads / rate) without the sum heads + rate, which overflows for rates near 2^63.
  const int64_t heads_per_offset = heads / rate + (heads % rate != 0 ? 1 : 0);
  return head / heads_per_offset;
}

int64_t HeadOffset(const DilatedAttentionOptions& options, int64_t head, int64_t heads,
                   int64_t rate) {
  const HeadShare& share = options.share;
  return share.of == 0 ? HeadOffset(options.offset_mode, head, heads, rate)
                       : HeadOffset(options.offset_mode, share.first + head, share.of, rate);
}

}  // namespace ringmaster::attention
