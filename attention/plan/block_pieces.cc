#include "attention/plan/block_pieces.h"

#include <algorithm>

namespace ringmaster::attention {

BlockPieces::BlockPieces(const BlockSparseAttentionOptions& options) : options_(options) {
  if (options.documents.empty()) return;
  const BlockMaskShape& shape = options.mask.shape();
  TokenRange document;
  for (int64_t token = 0; token < shape.tokens;) {
    document = DocumentAt(options.documents, token, shape.tokens);
    const auto begin = static_cast<int64_t>(pieces_.size());
    while (token < document.end) {
      const int64_t block = token / shape.block_size;
      const int64_t end = std::min(document.end, options.mask.BlockBegin(block + 1));
      pieces_.push_back({{token, end}, block, begin, 0});
      token = end;
    }
    const auto document_end = static_cast<int64_t>(pieces_.size());
    for (int64_t piece = begin; piece < document_end; ++piece) {
      pieces_[piece].document_end = document_end;
    }
  }
}

int64_t BlockPieces::Find(int64_t token) const {
  if (pieces_.empty()) return std::min(token / options_.mask.shape().block_size, size());
  const auto piece =
      std::upper_bound(pieces_.begin(), pieces_.end(), token,
                       [](int64_t value, const Piece& p) { return value < p.tokens.end; });
  return piece - pieces_.begin();
}

}  // namespace ringmaster::attention
