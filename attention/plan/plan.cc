#include "attention/plan/plan.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "attention/plan/block_plan.h"
#include "attention/plan/selection.h"
#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

// The segments of which a range holds only a part are among those of its first and its last token.
std::vector<TokenRange> BorderSegments(absl::Span<const TokenRange> ranges,
                                       const Segments& segments) {
  std::vector<TokenRange> borders;
  const auto add = [&](int64_t token) {
    // Ranges ascend.
    if (borders.empty() || token >= borders.back().end) borders.push_back(segments.At(token));
  };
  for (const TokenRange& range : ranges) {
    add(range.begin);
    add(range.end - 1);
  }
  return borders;
}

// Position after the last selected token of `ranges` in `segment`, relative to the segment's begin;
// 0 when none is.
int64_t EndOfSelected(absl::Span<const TokenRange> ranges, const TokenRange& segment,
                      int64_t offset, int64_t rate) {
  int64_t end = 0;
  for (const TokenRange& range : ranges) {
    const TokenRange part = Intersect(range, segment);
    if (part.size() <= 0) {
      continue;
    }
    const int64_t first = SelectedBefore(part.begin - segment.begin, offset, rate);
    const int64_t last = SelectedBefore(part.end - segment.begin, offset, rate);
    if (last > first) {
      end = offset + (last - 1) * rate + 1;
    }
  }
  return end;
}

// The largest end of the ranges that `rank` needs keys for, when its own ranges are the senders: a
// key of its own travels to the pool only for a query in another of its ranges.
bool OwnLaterRangeNeeds(absl::Span<const TokenRange> ranges, const TokenRange& own,
                        const TokenRange& segment, int64_t offset, int64_t rate, bool causal) {
  for (const TokenRange& other : ranges) {
    const bool relevant = causal ? other.begin >= own.end : other.begin != own.begin;
    const TokenRange one[] = {other};
    if (relevant && EndOfSelected(one, segment, offset, rate) > 0) {
      return true;
    }
  }
  return false;
}

// The rows of one segment that `to` needs of `from`.
void AppendRuns(const AttentionPlan& plan, const DilatedAttentionOptions& options, int branch,
                const TokenRange& segment, int from, int to, std::vector<RowRun>* runs) {
  const ShardMap& map = plan.map();
  const int heads = plan.heads();
  const int64_t rate = options.branches[branch].dilation_rate;
  std::vector<std::pair<int64_t, int>> selections;  // (offset, kv head)
  for (int head = 0; head < heads; ++head) {
    selections.emplace_back(HeadOffset(options, head, heads, rate),
                            head / (heads / plan.kv_heads()));
  }
  std::sort(selections.begin(), selections.end());
  selections.erase(std::unique(selections.begin(), selections.end()), selections.end());

  for (const auto& [offset, kv_head] : selections) {
    const int64_t queries_end = EndOfSelected(map.Ranges(to), segment, offset, rate);
    if (queries_end == 0) {
      continue;
    }
    for (const TokenRange& range : map.Ranges(from)) {
      const TokenRange part = Intersect(range, segment);
      const bool needed =
          part.size() > 0 && (!options.causal || part.begin < segment.begin + queries_end) &&
          (from != to ||
           OwnLaterRangeNeeds(map.Ranges(to), range, segment, offset, rate, options.causal));
      if (!needed) {
        continue;
      }
      const int64_t first = SelectedBefore(part.begin - segment.begin, offset, rate);
      const int64_t last = SelectedBefore(part.end - segment.begin, offset, rate);
      if (last > first) {
        runs->push_back({branch, segment.begin, offset, kv_head,
                         segment.begin + offset + first * rate, rate, last - first});
      }
    }
  }
}

}  // namespace

absl::StatusOr<AttentionPlan> AttentionPlan::Create(AttentionPattern pattern, ShardMap map,
                                                    int heads, int kv_heads, Strategy strategy) {
  RETURN_IF_ERROR(Validate(pattern, map.tokens(), heads));
  if (kv_heads < 1 || heads < 1 || heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(heads, " query heads over ", kv_heads,
                                                   " key/value heads; the first must be a "
                                                   "positive multiple of the second"));
  }
  const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&pattern);
  if (strategy == Strategy::kHeads && blocks != nullptr && blocks->gated) {
    return absl::InvalidArgumentError(
        "pairs of blocks with gates cannot be shared by heads: all heads have the same gates");
  }
  return AttentionPlan(std::move(pattern), HeadShares(std::move(map), heads, kv_heads), strategy);
}

std::vector<RowRun> AttentionPlan::Runs(int from, int to) const {
  if (strategy_ == Strategy::kHeads) return {};
  if (const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&pattern_)) {
    return BlockRuns(*blocks, *this, from, to);
  }
  const auto& options = std::get<DilatedAttentionOptions>(pattern_);
  std::vector<RowRun> runs;
  for (size_t branch = 0; branch < options.branches.size(); ++branch) {
    const Segments segments(options.branches[branch], options.documents, map().tokens());
    for (const TokenRange& segment : BorderSegments(map().Ranges(from), segments)) {
      AppendRuns(*this, options, static_cast<int>(branch), segment, from, to, &runs);
    }
  }
  return runs;
}

int64_t AttentionPlan::Rows(int from, int to) const {
  int64_t rows = 0;
  for (const RowRun& run : Runs(from, to)) {
    rows += run.count;
  }
  return rows;
}

uint64_t AttentionPlan::ForwardBytes(int from, int to, const MessageShape& shape) const {
  if (from == to) {
    return 0;
  }
  if (strategy_ == Strategy::kHeads) {
    return shares_.ForwardBytes(from, to, shape);
  }
  return static_cast<uint64_t>(Rows(from, to)) * 2 * shape.batch * shape.head_dim *
         shape.element_bytes;
}

uint64_t AttentionPlan::BackwardBytes(int from, int to, const MessageShape& shape) const {
  if (from == to) {
    return 0;
  }
  if (strategy_ == Strategy::kHeads) {
    return shares_.BackwardBytes(from, to, shape);
  }
  return static_cast<uint64_t>(Rows(to, from)) * 2 * shape.batch * shape.head_dim *
         shape.gradient_bytes;
}

uint64_t AttentionPlan::SentBytesForward(int rank, const MessageShape& shape) const {
  uint64_t bytes = 0;
  for (int peer = 0; peer < map().ranks(); ++peer) {
    bytes += ForwardBytes(rank, peer, shape);
  }
  return bytes;
}

uint64_t AttentionPlan::SentBytesBackward(int rank, const MessageShape& shape) const {
  uint64_t bytes = 0;
  for (int peer = 0; peer < map().ranks(); ++peer) {
    bytes += BackwardBytes(rank, peer, shape);
  }
  return bytes;
}

namespace {

// Pairs of a selected query in [part.begin, part.end) and a selected key it sees in its segment.
double VisiblePairs(const TokenRange& part, const TokenRange& segment, int64_t offset, int64_t rate,
                    bool causal) {
  const auto first = static_cast<double>(SelectedBefore(part.begin - segment.begin, offset, rate));
  const auto last = static_cast<double>(SelectedBefore(part.end - segment.begin, offset, rate));
  const auto all = static_cast<double>(SelectedBefore(segment.size(), offset, rate));
  return causal ? (last * (last + 1) - first * (first + 1)) / 2 : (last - first) * all;
}

double VisiblePairs(const DilatedAttentionOptions& options, const AttentionPlan& plan, int rank) {
  double pairs = 0;
  for (const Branch& branch : options.branches) {
    const Segments segments(branch, options.documents, plan.map().tokens());
    for (int head = 0; head < plan.heads(); ++head) {
      const int64_t offset = HeadOffset(options, head, plan.heads(), branch.dilation_rate);
      for (const TokenRange& range : plan.map().Ranges(rank)) {
        for (int64_t token = range.begin; token < range.end;) {
          const TokenRange segment = segments.At(token);
          const int64_t alike = token == segment.begin ? segments.Alike(token, range.end) : 1;
          pairs +=
              static_cast<double>(alike) * VisiblePairs(Intersect(range, segment), segment, offset,
                                                        branch.dilation_rate, options.causal);
          token = segment.end + (alike - 1) * segment.size();
        }
      }
    }
  }
  return pairs;
}

}  // namespace

double AttentionPlan::ForwardFlops(int rank, const MessageShape& shape) const {
  if (strategy_ == Strategy::kHeads) {
    const HeadShares::Share own = shares_.Of(rank);
    if (own.count == 0) return 0;
    const int64_t group = shares_.group();
    const auto count = static_cast<int>(own.count), own_heads = static_cast<int>(count * group);
    return AttentionPlan(HeadsOf(pattern_, own.first * group, own_heads, heads()),
                         HeadShares(ShardMap::Contiguous(map().tokens(), 1, 1), own_heads, count),
                         Strategy::kGrouped)
        .ForwardFlops(0, shape);
  }
  const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&pattern_);
  const double pairs = blocks != nullptr
                           ? BlockPairs(*blocks, *this, rank)
                           : VisiblePairs(std::get<DilatedAttentionOptions>(pattern_), *this, rank);
  return 4.0 * pairs * static_cast<double>(shape.head_dim) * static_cast<double>(shape.batch);
}

}  // namespace ringmaster::attention
