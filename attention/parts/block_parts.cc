#include "attention/parts/block_parts.h"

#include <iterator>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/parts/pool_runs.h"
#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

// Rows beside each other are one run.
void Append(const Run& run, std::vector<Run>* runs) {
  if (run.count == 0) return;
  if (!runs->empty() && runs->back().head == run.head &&
      runs->back().first + runs->back().count == run.first) {
    runs->back().count += run.count;
  } else {
    runs->push_back(run);
  }
}

// Problems of any shapes to parts, each of one shape and with no query twice.
class Parts {
 public:
  // No part has more rows of keys than `most_keys`, if it has more than one problem.
  explicit Parts(int64_t most_keys) : most_keys_(most_keys) {}

  // The `place` tells problems of the same queries apart; with gates, `gate` is the problem's.
  void Add(const Run& queries, const std::vector<Run>& keys, bool causal, int64_t place = 0,
           std::optional<int64_t> gate = {}) {
    int64_t rows = 0;
    for (const Run& run : keys) rows += run.count;
    std::vector<Part>& parts = parts_[{queries.count, rows, causal, place}];
    if (parts.empty() || parts.back().keys.rows() + rows > most_keys_) {
      parts.push_back({.causal = causal});
      parts.back().keys.distinct = false;
    }
    AddGroup(&parts.back().queries, &queries, 1, queries.count);
    AddGroup(&parts.back().keys, keys.data(), keys.size(), rows);
    if (gate.has_value()) parts.back().gates.push_back(*gate);
  }

  std::vector<Part> Take() {
    std::vector<Part> all;
    for (auto& [shape, parts] : parts_) {
      std::move(parts.begin(), parts.end(), std::back_inserter(all));
    }
    return all;
  }

 private:
  const int64_t most_keys_;
  std::map<std::tuple<int64_t, int64_t, bool, int64_t>, std::vector<Part>> parts_;
};

// The problems of one head, one after the other; neighbours that are one are put together.
class Joined {
 public:
  // Queries' own keys are of `kv_head`.
  Joined(Parts* parts, int kv_head) : parts_(parts), kv_head_(kv_head) {}
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;
  ~Joined() { Close(); }

  // `keys` that all the queries see; if causal, they see themselves as well.
  void Add(const Run& queries, const std::vector<Run>& keys, bool causal) {
    std::vector<Run> before = keys_;
    if (causal_) Append(Own(), &before);
    if (queries_.count > 0 && queries_.first + queries_.count == queries.first &&
        causal == causal_ && before == keys) {
      queries_.count += queries.count;
      return;
    }
    Close();
    if (!keys.empty() || causal) {
      queries_ = queries;
      keys_ = keys;
      causal_ = causal;
    }
  }

 private:
  Run Own() const { return {queries_.first, 1, queries_.count, kv_head_}; }

  void Close() {
    if (queries_.count > 0) {
      if (causal_) Append(Own(), &keys_);
      parts_->Add(queries_, keys_, causal_);
    }
    queries_.count = 0;
  }

  Parts* const parts_;
  const int kv_head_;
  Run queries_;
  std::vector<Run> keys_;
  bool causal_ = false;
};

// The numbers of a mask's visible pairs.
class PairNumbers {
 public:
  explicit PairNumbers(const BlockMask& mask) : mask_(mask) {
    const BlockMaskShape& shape = mask.shape();
    int64_t number = 0;
    for (int64_t head = 0; head < shape.heads; ++head) {
      for (int64_t query = 0; query < shape.blocks(); ++query) {
        begin_.push_back(number);
        ForEachBlock(mask.Row(head, query), shape.blocks(), [&](int64_t) { ++number; });
      }
    }
  }

  // The first number of a row.
  int64_t Begin(int64_t head, int64_t query_block) const {
    const BlockMaskShape& shape = mask_.shape();
    return begin_[(shape.heads == 1 ? 0 : head) * shape.blocks() + query_block];
  }

 private:
  const BlockMask& mask_;
  std::vector<int64_t> begin_;
};

class Builder {
 public:
  Builder(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank)
      : options_(options),
        mask_(options.mask),
        plan_(plan),
        rank_(rank),
        group_(plan.heads() / plan.kv_heads()),
        own_(mask_.shape().blocks()) {
    if (options.gated) numbers_.emplace(mask_);
    for (const LocalRange& range : LocalRanges(plan.map(), rank)) {
      const int64_t size = mask_.shape().block_size;
      for (int64_t block = range.tokens.begin / size; block * size < range.tokens.end; ++block) {
        const TokenRange tokens =
            Intersect({mask_.BlockBegin(block), mask_.BlockBegin(block + 1)}, range.tokens);
        const int64_t first = range.local_begin + tokens.begin - range.tokens.begin;
        pieces_.push_back({block, tokens, {first, 1, tokens.size(), 0}});
        Run& own = own_[block];
        own = {own.count == 0 ? first : own.first, 1, own.count + tokens.size(), 0};
      }
    }
  }

  RankParts Build() {
    std::vector<std::vector<PoolRun>> pool(plan_.kv_heads());
    for (const PoolRun& held : AddMessages(plan_, rank_, &result_)) {
      pool[held.run.kv_head].push_back(held);
    }
    const int64_t most_keys = plan_.map().LocalTokens(rank_) * plan_.heads();
    Parts local(most_keys), far(most_keys);
    for (int head = 0; head < plan_.heads(); ++head) {
      if (options_.gated) {
        AddGated(head, pool[head / group_], &local, &far);
      } else {
        AddLocal(head, &local);
        AddFar(head, pool[head / group_], &far);
      }
      AddAlone(head);
    }
    result_.tile_order = options_.tile_order;
    result_.local = local.Take();
    result_.far = far.Take();
    CloseGroup(&result_.alone);
    CloseGroup(&result_.alone_keys);
    return std::move(result_);
  }

 private:
  // What of a block lies in one of the rank's ranges.
  struct Piece {
    int64_t block = 0;
    TokenRange tokens;
    Run local;  // of head 0
  };

  static Run Of(Run run, int64_t head) {
    run.head = head;
    return run;
  }
  // End of the blocks of which all keys are visible if some are.
  int64_t WholeEnd(int64_t query_block) const {
    return options_.causal ? query_block : mask_.shape().blocks();
  }
  bool SeesItself(int64_t head, int64_t block) const { return mask_.visible(head, block, block); }

  void AddLocal(int head, Parts* parts) const {
    Joined joined(parts, head / group_);
    std::vector<Run> keys;
    for (int64_t block = 0; block < mask_.shape().blocks(); ++block) {
      if (own_[block].count == 0) continue;
      keys.clear();
      ForEachBlock(mask_.Row(head, block), WholeEnd(block),
                   [&](int64_t key) { Append(Of(own_[key], head / group_), &keys); });
      joined.Add(Of(own_[block], head), keys, options_.causal && SeesItself(head, block));
    }
  }

  void AddFar(int head, const std::vector<PoolRun>& pool, Parts* parts) const {
    Joined joined(parts, 0);
    std::vector<Run> keys;
    for (const Piece& piece : pieces_) {
      keys.clear();
      for (const PoolRun& held : pool) {
        const bool before =
            held.run.segment < WholeEnd(piece.block) || held.run.first < piece.tokens.begin;
        if (before && mask_.visible(head, piece.block, held.run.segment)) {
          Append({held.begin, 1, held.run.count, 0}, &keys);
        }
      }
      joined.Add(Of(piece.local, head), keys, /*causal=*/false);
    }
  }

  // Each pair of blocks is a problem of its own.
  void AddGated(int head, const std::vector<PoolRun>& pool, Parts* local, Parts* far) const {
    std::vector<std::vector<const PoolRun*>> held_of(mask_.shape().blocks());
    for (const PoolRun& held : pool) held_of[held.run.segment].push_back(&held);
    for (const Piece& piece : pieces_) {
      // A rank's own tokens of a block are one problem, wherever its ranges end.
      const bool first = piece.local.first == own_[piece.block].first;
      int64_t place = 0;
      const int64_t end = WholeEnd(piece.block) + (options_.causal ? 1 : 0);
      ForEachBlock(mask_.Row(head, piece.block), end, [&](int64_t key) {
        const int64_t gate = numbers_->Begin(head, piece.block) + place;
        const bool causal = options_.causal && key == piece.block;
        if (first && own_[key].count > 0) {
          local->Add(Of(own_[piece.block], head), {Of(own_[key], head / group_)}, causal, place,
                     gate);
        }
        std::vector<Run> keys;
        for (const PoolRun* held : held_of[key]) {
          if (!causal || held->run.first < piece.tokens.begin) {
            Append({held->begin, 1, held->run.count, 0}, &keys);
          }
        }
        if (!keys.empty()) far->Add(Of(piece.local, head), keys, /*causal=*/false, place, gate);
        ++place;
      });
    }
  }

  void AddAlone(int head) {
    for (const Piece& piece : pieces_) {
      const int64_t begin = mask_.BlockBegin(piece.block);
      if (piece.tokens.begin != begin || !SeesItself(head, piece.block)) continue;
      // Its own block is not among the whole ones of a causal query.
      int64_t seen = options_.causal ? 1 : 0;
      ForEachBlock(mask_.Row(head, piece.block), WholeEnd(piece.block),
                   [&](int64_t key) { seen += mask_.BlockBegin(key + 1) - mask_.BlockBegin(key); });
      if (seen == 1) {
        result_.alone.runs.push_back({piece.local.first, 1, 1, head});
        result_.alone_keys.runs.push_back({piece.local.first, 1, 1, head / group_});
      }
    }
  }

  const BlockSparseAttentionOptions& options_;
  const BlockMask& mask_;
  const AttentionPlan& plan_;
  const int rank_;
  const int group_;       // query heads per key/value head
  std::vector<Run> own_;  // the rank's tokens of each block, of head 0
  std::optional<PairNumbers> numbers_;
  std::vector<Piece> pieces_;
  RankParts result_;
};

}  // namespace

RankParts MakeBlockParts(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                         int rank) {
  return Builder(options, plan, rank).Build();
}

}  // namespace ringmaster::attention
