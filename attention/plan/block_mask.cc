#include "attention/plan/block_mask.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

constexpr int64_t kMaxWords = int64_t{1} << 31;  // 16 GiB

int64_t WordsOfRow(const BlockMaskShape& shape) { return (shape.blocks() + 63) / 64; }
int64_t WordsOfHead(const BlockMaskShape& shape) { return shape.blocks() * WordsOfRow(shape); }

// The bits of `word` that are blocks [begin, end).
uint64_t BitsOf(int64_t word, int64_t begin, int64_t end) {
  const uint64_t from = begin > word * 64 ? ~uint64_t{0} << (begin - word * 64) : ~uint64_t{0};
  return end - word * 64 < 64 ? from & ~(~uint64_t{0} << (end - word * 64)) : from;
}

// How many blocks of [0, end) a row shows.
int64_t Count(absl::Span<const uint64_t> words, int64_t end) {
  int64_t count = 0;
  for (int64_t word = 0; word * 64 < end; ++word) {
    count += __builtin_popcountll(words[word] & BitsOf(word, 0, end));
  }
  return count;
}

}  // namespace

absl::Status BlockMaskShape::Validate() const {
  if (heads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("heads of the block mask is ", heads, "; it must be at least 1"));
  }
  if (tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens of the block mask is ", tokens, "; it must not be negative"));
  }
  if (block_size != 64 && block_size != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_size of the block mask is ", block_size, "; it must be 64 or 128"));
  }
  const auto limit = static_cast<double>(kMaxWords);
  const auto rows = static_cast<double>(heads) * static_cast<double>(tokens / block_size + 1);
  if (rows * static_cast<double>(tokens / block_size / 64 + 1) > limit) {
    return absl::InvalidArgumentError(absl::StrCat("tokens of the block mask is ", tokens, " with ",
                                                   heads,
                                                   " heads; its bits would take more than 16 GiB"));
  }
  return absl::OkStatus();
}

void BlockRow::ShowRange(int64_t begin, int64_t end) {
  for (int64_t word = begin / 64; word * 64 < end; ++word) {
    words_[word] |= BitsOf(word, begin, end);
  }
}

absl::StatusOr<BlockMask> BlockMask::Create(
    const BlockMaskShape& shape,
    absl::FunctionRef<void(int64_t head, int64_t query_block, BlockRow& row)> fill) {
  RETURN_IF_ERROR(shape.Validate());
  const int64_t size = WordsOfRow(shape);
  auto state = std::make_shared<State>();
  state->words.resize(shape.heads * WordsOfHead(shape));
  for (int64_t head = 0; head < shape.heads; ++head) {
    int64_t& pairs = state->pairs.emplace_back(0);
    for (int64_t query = 0; query < shape.blocks(); ++query) {
      const auto words =
          absl::MakeSpan(state->words).subspan((head * shape.blocks() + query) * size, size);
      BlockRow row(words);
      fill(head, query, row);
      const int64_t shown = Count(words, shape.blocks());
      pairs += shown;
      state->every_query_sees &= shown > 0;
      state->every_causal_query_sees &= Count(words, query + 1) > 0;
    }
    state->hashes.push_back(absl::HashOf(
        absl::MakeConstSpan(state->words).subspan(head * WordsOfHead(shape), WordsOfHead(shape))));
  }
  return BlockMask(std::move(state), shape, 0);
}

BlockMask::BlockMask(std::shared_ptr<const State> state, const BlockMaskShape& shape,
                     int64_t first_head)
    : state_(std::move(state)),
      shape_(shape),
      first_head_(first_head),
      hash_(absl::HashOf(shape.heads, shape.tokens, shape.block_size,
                         absl::MakeConstSpan(state_->hashes).subspan(first_head, shape.heads))) {}

BlockMask BlockMask::Heads(int64_t first, int64_t count) const {
  BlockMaskShape shape = shape_;
  shape.heads = count;
  return BlockMask(state_, shape, first_head_ + first);
}

BlockMask BlockMask::FirstTokens(int64_t tokens) const {
  BlockMaskShape shape = shape_;
  shape.tokens = tokens;
  return *Create(shape, [&](int64_t head, int64_t query, BlockRow& row) {
    ForEachBlock(Row(head, query), shape.blocks(), [&row](int64_t key) { row.Show(key); });
  });
}

absl::Span<const uint64_t> BlockMask::words() const {
  return absl::MakeConstSpan(state_->words)
      .subspan(first_head_ * WordsOfHead(shape_), shape_.heads * WordsOfHead(shape_));
}

absl::Span<const uint64_t> BlockMask::Row(int64_t head, int64_t query_block) const {
  const int64_t size = WordsOfRow(shape());
  const int64_t row = (shape().heads == 1 ? 0 : head) * shape().blocks() + query_block;
  return words().subspan(row * size, size);
}

int64_t BlockMask::Pairs() const {
  const auto first = state_->pairs.begin() + first_head_;
  return std::accumulate(first, first + shape_.heads, int64_t{0});
}

double BlockMask::Density(bool causal) const {
  const auto tokens = static_cast<double>(shape().tokens);
  if (tokens == 0) return 0;
  const int64_t last = shape().blocks() - 1;
  const auto lacking = static_cast<double>((last + 1) * shape().block_size - shape().tokens);
  const auto size = static_cast<double>(shape().block_size);
  double pairs = 0;
  for (int64_t head = 0; head < shape().heads; ++head) {
    for (int64_t query = 0; query <= last; ++query) {
      const auto queries = static_cast<double>(BlockBegin(query + 1) - BlockBegin(query));
      // Causal, all keys but those of the own block, of which a query sees half, and itself.
      const auto keys = static_cast<double>(Count(Row(head, query), causal ? query : last + 1));
      pairs += queries * size * keys;
      if (!causal && visible(head, query, last)) pairs -= queries * lacking;
      if (causal && visible(head, query, query)) pairs += queries * (queries + 1) / 2;
    }
  }
  const double all = causal ? tokens * (tokens + 1) / 2 : tokens * tokens;
  return pairs / all / static_cast<double>(shape().heads);
}

bool operator==(const BlockMask& a, const BlockMask& b) {
  return a.shape() == b.shape() && a.hash() == b.hash() &&
         ((a.state_ == b.state_ && a.first_head_ == b.first_head_) || a.words() == b.words());
}

}  // namespace ringmaster::attention
