#include "attention/rank_parts.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "attention/selection.h"

namespace ringmaster::attention {
namespace {

// A range of this rank and the local number of its first token.
struct LocalRange {
  TokenRange tokens;
  int64_t local_begin = 0;
};

std::vector<LocalRange> LocalRanges(const ShardMap& map, int rank) {
  std::vector<LocalRange> ranges;
  int64_t begin = 0;
  for (const TokenRange& range : map.Ranges(rank)) {
    ranges.push_back({range, begin});
    begin += range.size();
  }
  return ranges;
}

int64_t LocalToken(const std::vector<LocalRange>& ranges, int64_t token) {
  const auto range =
      std::upper_bound(ranges.begin(), ranges.end(), token,
                       [](int64_t value, const LocalRange& r) { return value < r.tokens.end; });
  return range->local_begin + token - range->tokens.begin;
}

// The rows of `range` that are selected in `segment`, as local tokens.
Run SelectedRun(const LocalRange& range, const TokenRange& segment, int64_t offset, int64_t rate,
                int64_t head) {
  const TokenRange part = Intersect(range.tokens, segment);
  const int64_t before = SelectedBefore(part.begin - segment.begin, offset, rate);
  const int64_t count = SelectedBefore(part.end - segment.begin, offset, rate) - before;
  if (count <= 0) {
    return {};
  }
  const int64_t token = segment.begin + offset + before * rate;
  return {range.local_begin + token - range.tokens.begin, rate, count, head};
}

void AddGroup(RowSet* set, const Run* runs, size_t size, int64_t rows) {
  set->runs.insert(set->runs.end(), runs, runs + size);
  set->group_begin.push_back(set->runs.size());
  set->rows_per_group = rows;
}

// Collects the parts of one rank.
class Builder {
 public:
  Builder(const AttentionPlan& plan, int rank)
      : plan_(plan),
        rank_(rank),
        ranges_(LocalRanges(plan.map(), rank)),
        group_(plan.heads() / plan.kv_heads()) {}

  RankParts Build() {
    for (int peer = 0; peer < plan_.map().ranks(); ++peer) {
      AddIncoming(peer);
      if (peer != rank_) {
        AddOutgoing(peer);
      }
    }
    for (size_t branch = 0; branch < plan_.options().branches.size(); ++branch) {
      AddLocalParts(static_cast<int>(branch));
      AddFarParts(static_cast<int>(branch));
      AddAlone(static_cast<int>(branch));
    }
    Close(&result_.alone);
    Close(&result_.alone_keys);
    return std::move(result_);
  }

 private:
  // The pool rows that hold one run of the plan.
  struct PoolRun {
    int from = 0;
    int64_t token = 0;  // first global token
    Run rows;
  };
  using Selection = std::tuple<int, int64_t, int64_t, int>;  // branch, segment, offset, kv head

  RankParts::Message LocalRows(int peer, const std::vector<RowRun>& runs) const {
    RankParts::Message message{.peer = peer};
    int branch = -1;
    for (const RowRun& run : runs) {
      if (run.branch != branch) {
        branch = run.branch;
        message.local.emplace_back().group_begin.push_back(0);
      }
      RowSet& set = message.local.back();
      set.runs.push_back({LocalToken(ranges_, run.first), run.step, run.count, run.kv_head});
      set.rows_per_group += run.count;
      set.group_begin.back() = set.runs.size();
      message.rows += run.count;
    }
    return message;
  }

  void AddIncoming(int from) {
    const std::vector<RowRun> runs = plan_.Runs(from, rank_);
    RankParts::Message message{.peer = from};
    if (from == rank_) {
      message = LocalRows(from, runs);
    }
    message.begin = result_.pool_rows;
    for (const RowRun& run : runs) {
      pool_[{run.branch, run.segment, run.offset, run.kv_head}].push_back(
          {from, run.first, {result_.pool_rows, 1, run.count, 0}});
      result_.pool_rows += run.count;
    }
    message.rows = result_.pool_rows - message.begin;
    if (from == rank_) {
      result_.kept = std::move(message);
    } else if (message.rows > 0) {
      result_.incoming.push_back(std::move(message));
    }
  }

  void AddOutgoing(int to) {
    RankParts::Message message = LocalRows(to, plan_.Runs(rank_, to));
    if (message.rows > 0) {
      message.begin = result_.outgoing_rows;
      result_.outgoing_rows += message.rows;
      result_.outgoing.push_back(std::move(message));
    }
  }

  // Calls f(range, its number, segment, segment index) for each pair that has tokens in common.
  template <typename F>
  void ForEachSegment(int branch, const F& f) const {
    const int64_t tokens = plan_.map().tokens();
    const int64_t length = ClampedSegmentLength(plan_.options().branches[branch], tokens);
    for (size_t range = 0; range < ranges_.size(); ++range) {
      const TokenRange& held = ranges_[range].tokens;
      for (int64_t index = held.begin / length; index <= (held.end - 1) / length; ++index) {
        f(ranges_[range], range, SegmentAt(index, length, tokens), index);
      }
    }
  }

  // Queries against the keys of their own range.
  void AddLocalParts(int branch) {
    const int64_t rate = plan_.options().branches[branch].dilation_rate;
    std::map<int64_t, Part> parts;  // by rows per group
    ForEachSegment(branch, [&](const LocalRange& range, size_t, const TokenRange& segment,
                               int64_t) {
      for (int head = 0; head < plan_.heads(); ++head) {
        const int64_t offset = HeadOffset(plan_.options().offset_mode, head, plan_.heads(), rate);
        Run run = SelectedRun(range, segment, offset, rate, head);
        if (run.count == 0) {
          continue;
        }
        Part& part = parts[run.count];
        part.branch = branch;
        part.causal = plan_.options().causal;
        AddGroup(&part.queries, &run, 1, run.count);
        run.head = head / group_;
        AddGroup(&part.keys, &run, 1, run.count);
        part.keys.distinct = group_ == 1;
      }
    });
    for (auto& [rows, part] : parts) {
      result_.local.push_back(std::move(part));
    }
  }

  // Queries against the pool. Ranges are kept apart, so that groups which share keys have the same
  // keys.
  void AddFarParts(int branch) {
    const int64_t rate = plan_.options().branches[branch].dilation_rate;
    std::map<std::tuple<size_t, int64_t, int64_t>, Part> parts;  // by range, query rows, key rows
    ForEachSegment(branch, [&](const LocalRange& range, size_t number, const TokenRange& segment,
                               int64_t index) {
      for (int head = 0; head < plan_.heads(); ++head) {
        const int64_t offset = HeadOffset(plan_.options().offset_mode, head, plan_.heads(), rate);
        const Run queries = SelectedRun(range, segment, offset, rate, head);
        const auto held = pool_.find({branch, index, offset, head / group_});
        if (queries.count == 0 || held == pool_.end()) {
          continue;
        }
        std::vector<Run> keys;
        int64_t rows = 0;
        for (const PoolRun& run : held->second) {
          if (Sees(range.tokens, run)) {
            keys.push_back(run.rows);
            rows += run.rows.count;
          }
        }
        if (rows == 0) {
          continue;
        }
        Part& part = parts[{number, queries.count, rows}];
        part.branch = branch;
        AddGroup(&part.queries, &queries, 1, queries.count);
        AddGroup(&part.keys, keys.data(), keys.size(), rows);
        part.keys.distinct = group_ == 1;
      }
    });
    for (auto& [key, part] : parts) {
      result_.far.push_back(std::move(part));
    }
  }

  // Whether queries of `range` see a run of the pool; a run lies wholly before or behind the range,
  // or is its own.
  bool Sees(const TokenRange& range, const PoolRun& run) const {
    const bool own = run.from == rank_ && run.token >= range.begin && run.token < range.end;
    return plan_.options().causal ? run.token < range.begin : !own;
  }

  // A query sees itself in every branch that selects it, so only the first query of a segment can
  // be alone there, and is alone altogether when all these branches agree.
  void AddAlone(int branch) {
    const int64_t rate = plan_.options().branches[branch].dilation_rate;
    ForEachSegment(
        branch, [&](const LocalRange& range, size_t, const TokenRange& segment, int64_t) {
          for (int head = 0; head < plan_.heads(); ++head) {
            const int64_t token =
                segment.begin + HeadOffset(plan_.options().offset_mode, head, plan_.heads(), rate);
            if (token < std::max(segment.begin, range.tokens.begin) ||
                token >= std::min(segment.end, range.tokens.end) || !IsAlone(token, head, branch)) {
              continue;
            }
            const int64_t row = range.local_begin + token - range.tokens.begin;
            result_.alone.runs.push_back({row, 1, 1, head});
            result_.alone_keys.runs.push_back({row, 1, 1, head / group_});
          }
        });
  }

  // Whether `token` is alone in all branches that select it, of which `finder` is the first.
  bool IsAlone(int64_t token, int head, int finder) const {
    const int64_t tokens = plan_.map().tokens();
    for (size_t branch = 0; branch < plan_.options().branches.size(); ++branch) {
      const Branch& given = plan_.options().branches[branch];
      const int64_t length = ClampedSegmentLength(given, tokens);
      const TokenRange segment = SegmentAt(token / length, length, tokens);
      const int64_t offset =
          HeadOffset(plan_.options().offset_mode, head, plan_.heads(), given.dilation_rate);
      const int64_t position = token - segment.begin;
      if (position % given.dilation_rate != offset) {
        continue;
      }
      const int64_t seen = plan_.options().causal ? position + 1 : segment.size();
      if (static_cast<int>(branch) < finder ||
          SelectedBefore(seen, offset, given.dilation_rate) != 1) {
        return false;
      }
    }
    return true;
  }

  // Makes the collected runs, one row each, a group.
  static void Close(RowSet* set) {
    if (!set->runs.empty()) {
      set->group_begin.push_back(set->runs.size());
      set->rows_per_group = static_cast<int64_t>(set->runs.size());
    }
  }

  const AttentionPlan& plan_;
  const int rank_;
  const std::vector<LocalRange> ranges_;
  const int group_;  // query heads per key/value head
  std::map<Selection, std::vector<PoolRun>> pool_;
  RankParts result_;
};

}  // namespace

size_t RankParts::bytes() const {
  size_t sum = sizeof(RankParts);
  for (const std::vector<Part>* parts : {&local, &far}) {
    for (const Part& part : *parts) {
      sum += sizeof(Part) + part.queries.bytes() + part.keys.bytes();
    }
  }
  const auto add = [&sum](const Message& message) {
    for (const RowSet& set : message.local) {
      sum += sizeof(RowSet) + set.bytes();
    }
  };
  std::for_each(outgoing.begin(), outgoing.end(), add);
  add(kept);
  return sum + alone.bytes() + alone_keys.bytes();
}

RankParts MakeRankParts(const AttentionPlan& plan, int rank) { return Builder(plan, rank).Build(); }

}  // namespace ringmaster::attention
