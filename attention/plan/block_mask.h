#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ringmaster::attention {

// Tokens are cut into blocks of `block_size`, of which the last may be shorter.
struct BlockMaskShape {
  int64_t heads = 1;  // 1: all query heads are alike
  int64_t tokens = 0;
  int64_t block_size = 128;  // or 64

  int64_t blocks() const { return (tokens + block_size - 1) / block_size; }
  // InvalidArgument naming the field.
  absl::Status Validate() const;

  friend bool operator==(const BlockMaskShape&, const BlockMaskShape&) = default;
};

// The blocks of keys that one block of queries sees, a bit each: bit j % 64 of word j / 64.
class BlockRow {
 public:
  explicit BlockRow(absl::Span<uint64_t> words) : words_(words) {}
  void Show(int64_t key_block) { words_[key_block / 64] |= uint64_t{1} << (key_block % 64); }
  void ShowRange(int64_t begin, int64_t end);

 private:
  absl::Span<uint64_t> words_;
};

// Which blocks of keys the queries of a block see, for each head. Immutable value, cheap to copy;
// thread-compatible.
class BlockMask {
 public:
  // `fill` shows a row its keys and is called once for each head and block of queries, in order.
  // InvalidArgument as the shape's.
  static absl::StatusOr<BlockMask> Create(
      const BlockMaskShape& shape,
      absl::FunctionRef<void(int64_t head, int64_t query_block, BlockRow& row)> fill);

  // The rows of heads [first, first + count). REQUIRES: 0 <= first, first + count <= heads.
  BlockMask Heads(int64_t first, int64_t count) const;

  // What the first tokens see of each other. REQUIRES: 0 <= tokens <= shape().tokens.
  BlockMask FirstTokens(int64_t tokens) const;

  const BlockMaskShape& shape() const { return shape_; }
  // `head` of the queries' heads, however many the mask has.
  bool visible(int64_t head, int64_t query_block, int64_t key_block) const {
    return Row(head, query_block)[key_block / 64] >> (key_block % 64) & 1;
  }
  // The words of a row; bits of no block are zero.
  absl::Span<const uint64_t> Row(int64_t head, int64_t query_block) const;
  // Tokens [BlockBegin(i), BlockBegin(i + 1)) are block i.
  int64_t BlockBegin(int64_t block) const {
    return std::min(block * shape().block_size, shape().tokens);
  }

  // Visible pairs of blocks, of all the mask's heads. In this order they are numbered: by head,
  // block of queries, block of keys.
  int64_t Pairs() const;
  // Visible pairs of a query and a key, of all pairs, mean over the heads. Causal: those whose key
  // is not behind the query, of all such. 0 for no tokens.
  double Density(bool causal) const;
  // Whether there is a key for every query; causal as above. Of a mask that is some heads of
  // another: of that one.
  bool EveryQuerySees(bool causal) const {
    return causal ? state_->every_causal_query_sees : state_->every_query_sees;
  }

  size_t bytes() const { return sizeof(State) + words().size() * sizeof(uint64_t); }
  // Equal masks have equal hashes, within a process.
  size_t hash() const { return hash_; }
  friend bool operator==(const BlockMask& a, const BlockMask& b);

 private:
  struct State {
    std::vector<uint64_t> words;  // [heads, blocks, words of a row]
    std::vector<size_t> hashes;   // of each head's
    std::vector<int64_t> pairs;   // of each head
    bool every_query_sees = true;
    bool every_causal_query_sees = true;
  };
  BlockMask(std::shared_ptr<const State> state, const BlockMaskShape& shape, int64_t first_head);

  // Those of the heads at hand.
  absl::Span<const uint64_t> words() const;

  std::shared_ptr<const State> state_;
  BlockMaskShape shape_;
  int64_t first_head_ = 0;
  size_t hash_ = 0;
};

// Calls f(j) for each set bit j of [begin, end), ascending.
template <typename F>
void ForEachBlock(absl::Span<const uint64_t> words, int64_t begin, int64_t end, const F& f) {
  for (int64_t word = begin / 64; word * 64 < end; ++word) {
    const uint64_t known = word == begin / 64 ? ~uint64_t{0} << (begin % 64) : ~uint64_t{0};
    for (uint64_t left = words[word] & known; left != 0; left &= left - 1) {
      const int64_t block = word * 64 + __builtin_ctzll(left);
      if (block >= end) return;
      f(block);
    }
  }
}
template <typename F>
void ForEachBlock(absl::Span<const uint64_t> words, int64_t end, const F& f) {
  ForEachBlock(words, 0, end, f);
}

}  // namespace ringmaster::attention
