#include "attention/parts/block_parts.h"

#include <iterator>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/parts/pool_runs.h"
#include "attention/plan/block_pieces.h"

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

  // The number that the first pair of a row has whose keys are in `key_block` or behind it.
  int64_t From(int64_t head, int64_t query_block, int64_t key_block) const {
    const BlockMaskShape& shape = mask_.shape();
    int64_t number = begin_[(shape.heads == 1 ? 0 : head) * shape.blocks() + query_block];
    ForEachBlock(mask_.Row(head, query_block), key_block, [&](int64_t) { ++number; });
    return number;
  }

 private:
  const BlockMask& mask_;
  std::vector<int64_t> begin_;
};

class Builder {
 public:
  Builder(const BlockSparseAttentionOptions& options, const AttentionPlan& plan, int rank)
      : options_(options),
        pieces_(options),
        plan_(plan),
        rank_(rank),
        group_(plan.heads() / plan.kv_heads()),
        own_(pieces_.size()) {
    if (options.gated) numbers_.emplace(options.mask);
    for (const LocalRange& range : LocalRanges(plan.map(), rank)) {
      pieces_.ForEachIn(range.tokens, [&](int64_t piece, const TokenRange& tokens) {
        const int64_t first = range.local_begin + tokens.begin - range.tokens.begin;
        queries_.push_back({piece, tokens, {first, 1, tokens.size(), 0}});
        Run& own = own_[piece];
        own = {own.count == 0 ? first : own.first, 1, own.count + tokens.size(), 0};
      });
    }
  }

  RankParts Build() {
    // By kv head and piece.
    std::vector<Held> pool(plan_.kv_heads(), Held(pieces_.size()));
    for (const PoolRun& held : AddMessages(plan_, rank_, &result_)) {
      pool[held.run.kv_head][held.run.segment].push_back(held);
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
  using Held = std::vector<std::vector<PoolRun>>;

  // What of a piece lies in one of the rank's ranges.
  struct Queries {
    int64_t piece = 0;
    TokenRange tokens;
    Run local;  // of head 0
  };

  static Run Of(Run run, int64_t head) {
    run.head = head;
    return run;
  }

  void AddLocal(int head, Parts* parts) const {
    Joined joined(parts, head / group_);
    std::vector<Run> keys;
    for (int64_t piece = 0; piece < pieces_.size(); ++piece) {
      if (own_[piece].count == 0) continue;
      keys.clear();
      pieces_.ForEachWhole(head, piece,
                           [&](int64_t key) { Append(Of(own_[key], head / group_), &keys); });
      joined.Add(Of(own_[piece], head), keys, pieces_.SeesUpToItself(head, piece));
    }
  }

  // What of the pool the queries see of a piece that they see, which may be their own.
  void AppendHeld(const Queries& queries, int64_t key, const Held& pool,
                  std::vector<Run>* keys) const {
    for (const PoolRun& held : pool[key]) {
      if (!options_.causal || held.run.first < queries.tokens.begin) {
        Append({held.begin, 1, held.run.count, 0}, keys);
      }
    }
  }

  void AddFar(int head, const Held& pool, Parts* parts) const {
    Joined joined(parts, 0);
    std::vector<Run> keys;
    for (const Queries& queries : queries_) {
      keys.clear();
      pieces_.ForEachWhole(head, queries.piece,
                           [&](int64_t key) { AppendHeld(queries, key, pool, &keys); });
      if (pieces_.SeesUpToItself(head, queries.piece))
        AppendHeld(queries, queries.piece, pool, &keys);
      joined.Add(Of(queries.local, head), keys, /*causal=*/false);
    }
  }

  // Each pair of blocks is a problem of its own, or several, of a document each.
  void AddGated(int head, const Held& pool, Parts* local, Parts* far) const {
    for (const Queries& queries : queries_) {
      const int64_t piece = queries.piece;
      // A rank's own tokens of a piece are one problem, wherever its ranges end.
      const bool first = queries.local.first == own_[piece].first;
      const int64_t numbers = numbers_->From(head, pieces_.Block(piece), pieces_.FirstBlock(piece));
      int64_t place = 0;
      const auto add = [&](int64_t key, bool causal) {
        const int64_t gate = numbers + place;
        if (first && own_[key].count > 0) {
          local->Add(Of(own_[piece], head), {Of(own_[key], head / group_)}, causal, place, gate);
        }
        std::vector<Run> keys;
        AppendHeld(queries, key, pool, &keys);
        if (!keys.empty()) far->Add(Of(queries.local, head), keys, /*causal=*/false, place, gate);
        ++place;
      };
      pieces_.ForEachWhole(head, piece, [&](int64_t key) { add(key, /*causal=*/false); });
      if (pieces_.SeesUpToItself(head, piece)) add(piece, /*causal=*/true);
    }
  }

  void AddAlone(int head) {
    for (const Queries& queries : queries_) {
      const int64_t piece = queries.piece;
      const bool first = queries.tokens.begin == pieces_.Tokens(piece).begin;
      if (!first || !pieces_.SeesItself(head, piece)) continue;
      // Its own piece is not among the whole ones of a causal query.
      int64_t seen = options_.causal ? 1 : 0;
      pieces_.ForEachWhole(head, piece, [&](int64_t key) { seen += pieces_.Tokens(key).size(); });
      if (seen == 1) {
        result_.alone.runs.push_back({queries.local.first, 1, 1, head});
        result_.alone_keys.runs.push_back({queries.local.first, 1, 1, head / group_});
      }
    }
  }

  const BlockSparseAttentionOptions& options_;
  const BlockPieces pieces_;
  const AttentionPlan& plan_;
  const int rank_;
  const int group_;       // query heads per key/value head
  std::vector<Run> own_;  // the rank's tokens of each piece, of head 0
  std::optional<PairNumbers> numbers_;
  std::vector<Queries> queries_;
  RankParts result_;
};

}  // namespace

RankParts MakeBlockParts(const BlockSparseAttentionOptions& options, const AttentionPlan& plan,
                         int rank) {
  return Builder(options, plan, rank).Build();
}

}  // namespace ringmaster::attention
