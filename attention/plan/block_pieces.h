#pragma once

#include <cstdint>
#include <vector>

#include "attention/plan/block_mask.h"
#include "attention/plan/options.h"
#include "attention/plan/selection.h"
#include "attention/plan/shard_map.h"

namespace ringmaster::attention {

// The blocks of a mask, cut where documents start: the queries of a piece see all keys of another
// piece or none. Without documents the pieces are the blocks, and take no time to make. Borrows the
// options; immutable.
class BlockPieces {
 public:
  explicit BlockPieces(const BlockSparseAttentionOptions& options);

  int64_t size() const {
    return pieces_.empty() ? options_.mask.shape().blocks() : static_cast<int64_t>(pieces_.size());
  }
  TokenRange Tokens(int64_t piece) const { return At(piece).tokens; }
  int64_t Block(int64_t piece) const { return At(piece).block; }
  // The first block of the piece's document.
  int64_t FirstBlock(int64_t piece) const { return Block(At(piece).document_begin); }

  // Whether a piece's queries see its keys, causal ones those up to themselves.
  bool SeesItself(int64_t head, int64_t piece) const {
    return options_.mask.visible(head, Block(piece), Block(piece));
  }
  // Whether they see some of its keys, and not all: these are beside what ForEachWhole gives.
  bool SeesUpToItself(int64_t head, int64_t piece) const {
    return options_.causal && SeesItself(head, piece);
  }

  // Calls f(piece) for those that queries of `query` see the whole of, ascending.
  template <typename F>
  void ForEachWhole(int64_t head, int64_t query, const F& f) const {
    const Piece own = At(query);
    const int64_t end = options_.causal ? query : own.document_end;
    const int64_t first = FirstBlock(query);
    ForEachBlock(options_.mask.Row(head, own.block), first, first + end - own.document_begin,
                 [&](int64_t block) { f(own.document_begin + block - first); });
  }

  // Calls f(piece, its tokens within the range) for those with tokens there, ascending.
  template <typename F>
  void ForEachIn(const TokenRange& range, const F& f) const {
    for (int64_t piece = Find(range.begin); piece < size(); ++piece) {
      const TokenRange tokens = Intersect(Tokens(piece), range);
      if (tokens.size() <= 0) return;
      f(piece, tokens);
    }
  }

 private:
  struct Piece {
    TokenRange tokens;
    int64_t block;
    // The pieces of its document, one for each block.
    int64_t document_begin, document_end;
  };

  Piece At(int64_t piece) const {
    if (!pieces_.empty()) return pieces_[piece];
    const BlockMask& mask = options_.mask;
    return {{mask.BlockBegin(piece), mask.BlockBegin(piece + 1)}, piece, 0, mask.shape().blocks()};
  }
  // The piece that holds a token, or, behind the last, their number.
  int64_t Find(int64_t token) const;

  const BlockSparseAttentionOptions& options_;
  std::vector<Piece> pieces_;  // none without documents
};

}  // namespace ringmaster::attention
