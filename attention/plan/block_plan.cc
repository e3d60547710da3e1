#include "attention/plan/block_plan.h"

#include <optional>

#include "attention/plan/block_pieces.h"

namespace ringmaster::attention {
namespace {

// Which pieces of blocks of keys of one key/value head some query of a rank sees.
class SeenPieces {
 public:
  SeenPieces(const BlockPieces& pieces, int64_t mask_heads, const AttentionPlan& plan, int rank,
             int kv_head)
      : seen_(pieces.size()), own_end_(pieces.size()) {
    const int group = plan.heads() / plan.kv_heads();
    // Heads that are alike are looked at once.
    const int heads = mask_heads == 1 ? 1 : group;
    for (const TokenRange& range : plan.map().Ranges(rank)) {
      pieces.ForEachIn(range, [&](int64_t piece, const TokenRange& tokens) {
        for (int head = kv_head * group; head < kv_head * group + heads; ++head) {
          pieces.ForEachWhole(head, piece, [&](int64_t key) { seen_[key] = true; });
          if (pieces.SeesUpToItself(head, piece)) own_end_[piece] = tokens.end;
        }
      });
    }
  }

  // Whether rows of a piece are, of which the last token is before `end`: within the piece of a
  // causal query only those before it.
  bool Sees(int64_t piece, int64_t end) const { return seen_[piece] || end < own_end_[piece]; }

 private:
  std::vector<bool> seen_;        // by queries to whom all of the piece is visible
  std::vector<int64_t> own_end_;  // end of the rank's queries in the piece that see it up to there
};

}  // namespace

std::vector<RowRun> BlockRuns(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                              int from, int to) {
  std::vector<RowRun> runs;
  if (from == to || plan.map().Ranges(from).empty() || plan.map().Ranges(to).empty()) {
    return runs;
  }
  const BlockPieces pieces(options);
  const int64_t mask_heads = options.mask.shape().heads;
  std::optional<SeenPieces> seen;
  for (int kv_head = 0; kv_head < plan.kv_heads(); ++kv_head) {
    // Again, heads that are alike are looked at once.
    if (!seen.has_value() || mask_heads > 1) seen.emplace(pieces, mask_heads, plan, to, kv_head);
    for (const TokenRange& range : plan.map().Ranges(from)) {
      pieces.ForEachIn(range, [&](int64_t piece, const TokenRange& tokens) {
        if (seen->Sees(piece, tokens.end)) {
          runs.push_back({.segment = piece,
                          .kv_head = kv_head,
                          .first = tokens.begin,
                          .count = tokens.size()});
        }
      });
    }
  }
  return runs;
}

double BlockPairs(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank) {
  const BlockPieces pieces(options);
  const int64_t mask_heads = options.mask.shape().heads;
  double pairs = 0;
  for (int64_t head = 0; head < mask_heads; ++head) {
    for (const TokenRange& range : plan.map().Ranges(rank)) {
      pieces.ForEachIn(range, [&](int64_t piece, const TokenRange& tokens) {
        const auto queries = static_cast<double>(tokens.size());
        pieces.ForEachWhole(head, piece, [&](int64_t key) {
          pairs += queries * static_cast<double>(pieces.Tokens(key).size());
        });
        if (pieces.SeesUpToItself(head, piece)) {
          const auto before = static_cast<double>(tokens.begin - pieces.Tokens(piece).begin);
          pairs += queries * before + queries * (queries + 1) / 2;
        }
      });
    }
  }
  return pairs * static_cast<double>(plan.heads() / mask_heads);
}

}  // namespace ringmaster::attention
