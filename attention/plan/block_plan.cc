#include "attention/plan/block_plan.h"

#include <algorithm>

#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

// Calls f(block, the tokens of a range within it), in order.
template <typename F>
void ForEachPiece(const BlockMask& mask, const TokenRange& range, const F& f) {
  const int64_t size = mask.shape().block_size;
  for (int64_t block = range.begin / size; block * size < range.end; ++block) {
    f(block, Intersect({mask.BlockBegin(block), mask.BlockBegin(block + 1)}, range));
  }
}

// Which blocks of keys of one key/value head some query of a rank sees.
class SeenBlocks {
 public:
  SeenBlocks(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank,
             int kv_head)
      : seen_(options.mask.shape().blocks()), own_end_(seen_.size()) {
    const BlockMask& mask = options.mask;
    const int group = plan.heads() / plan.kv_heads();
    // Heads that are alike are looked at once.
    const int heads = mask.shape().heads == 1 ? 1 : group;
    for (const TokenRange& range : plan.map().Ranges(rank)) {
      ForEachPiece(mask, range, [&](int64_t block, const TokenRange& piece) {
        for (int head = kv_head * group; head < kv_head * group + heads; ++head) {
          ForEachBlock(mask.Row(head, block), options.causal ? block : mask.shape().blocks(),
                       [&](int64_t key) { seen_[key] = true; });
          if (options.causal && mask.visible(head, block, block)) own_end_[block] = piece.end;
        }
      });
    }
  }

  // Whether rows of a block are, of which the last token is before `end`: within the block of a
  // causal query only those before it.
  bool Sees(int64_t block, int64_t end) const { return seen_[block] || end < own_end_[block]; }

 private:
  std::vector<bool> seen_;        // by queries to whom all of the block is visible
  std::vector<int64_t> own_end_;  // end of the rank's queries in the block that see it up to there
};

}  // namespace

std::vector<RowRun> BlockRuns(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                              int from, int to) {
  std::vector<RowRun> runs;
  if (from == to || plan.map().Ranges(from).empty() || plan.map().Ranges(to).empty()) {
    return runs;
  }
  for (int kv_head = 0; kv_head < plan.kv_heads(); ++kv_head) {
    const SeenBlocks seen(options, plan, to, kv_head);
    for (const TokenRange& range : plan.map().Ranges(from)) {
      ForEachPiece(options.mask, range, [&](int64_t block, const TokenRange& piece) {
        if (seen.Sees(block, piece.end)) {
          runs.push_back(
              {.segment = block, .kv_head = kv_head, .first = piece.begin, .count = piece.size()});
        }
      });
    }
  }
  return runs;
}

double BlockPairs(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank) {
  const BlockMask& mask = options.mask;
  double pairs = 0;
  for (int head = 0; head < plan.heads(); ++head) {
    for (const TokenRange& range : plan.map().Ranges(rank)) {
      ForEachPiece(mask, range, [&](int64_t block, const TokenRange& piece) {
        const auto queries = static_cast<double>(piece.size());
        ForEachBlock(mask.Row(head, block), options.causal ? block : mask.shape().blocks(),
                     [&](int64_t key) {
                       const int64_t keys = mask.BlockBegin(key + 1) - mask.BlockBegin(key);
                       pairs += queries * static_cast<double>(keys);
                     });
        if (options.causal && mask.visible(head, block, block)) {
          const auto before = static_cast<double>(piece.begin - mask.BlockBegin(block));
          pairs += queries * before + queries * (queries + 1) / 2;
        }
      });
    }
  }
  return pairs;
}

}  // namespace ringmaster::attention
