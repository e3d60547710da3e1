#include "attention/parts/rank_parts.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <variant>

#include "attention/parts/block_parts.h"
#include "attention/parts/pool_runs.h"
#include "attention/plan/selection.h"

namespace ringmaster::attention {
namespace {

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

// Collects the parts of one rank.
class Builder {
 public:
  Builder(const DilatedAttentionOptions& options, const AttentionPlan& plan, int rank)
      : options_(options),
        plan_(plan),
        rank_(rank),
        ranges_(LocalRanges(plan.map(), rank)),
        group_(plan.heads() / plan.kv_heads()) {}

  RankParts Build() {
    for (const PoolRun& held : AddMessages(plan_, rank_, &result_)) {
      const RowRun& run = held.run;
      pool_[{run.branch, run.segment, run.offset, run.kv_head}].push_back(held);
    }
    for (size_t branch = 0; branch < options_.branches.size(); ++branch) {
      AddLocalParts(static_cast<int>(branch));
      AddFarParts(static_cast<int>(branch));
      AddAlone(static_cast<int>(branch));
    }
    CloseGroup(&result_.alone);
    CloseGroup(&result_.alone_keys);
    return std::move(result_);
  }

 private:
  using Selection = std::tuple<int, int64_t, int64_t, int>;  // branch, segment, offset, kv head

  Segments SegmentsOf(size_t branch) const {
    return {options_.branches[branch], options_.documents, plan_.map().tokens()};
  }

  // Calls f(range, its number, segment) for each pair that has tokens in common.
  template <typename F>
  void ForEachSegment(int branch, const F& f) const {
    const Segments segments = SegmentsOf(branch);
    for (size_t range = 0; range < ranges_.size(); ++range) {
      const TokenRange& held = ranges_[range].tokens;
      TokenRange segment;
      for (int64_t token = held.begin; token < held.end; token = segment.end) {
        segment = segments.At(token);
        f(ranges_[range], range, segment);
      }
    }
  }

  // Queries against the keys of their own range.
  void AddLocalParts(int branch) {
    const int64_t rate = options_.branches[branch].dilation_rate;
    std::map<int64_t, Part> parts;  // by rows per group
    ForEachSegment(branch, [&](const LocalRange& range, size_t, const TokenRange& segment) {
      for (int head = 0; head < plan_.heads(); ++head) {
        const int64_t offset = HeadOffset(options_, head, plan_.heads(), rate);
        Run run = SelectedRun(range, segment, offset, rate, head);
        if (run.count == 0) {
          continue;
        }
        Part& part = parts[run.count];
        part.branch = branch;
        part.causal = options_.causal;
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

  // Queries against the pool, range by range.
  void AddFarParts(int branch) {
    const int64_t rate = options_.branches[branch].dilation_rate;
    std::map<std::tuple<size_t, int64_t, int64_t>, Part> parts;  // by range, query rows, key rows
    ForEachSegment(branch, [&](const LocalRange& range, size_t number, const TokenRange& segment) {
      for (int head = 0; head < plan_.heads(); ++head) {
        const int64_t offset = HeadOffset(options_, head, plan_.heads(), rate);
        const Run queries = SelectedRun(range, segment, offset, rate, head);
        const auto held = pool_.find({branch, segment.begin, offset, head / group_});
        if (queries.count == 0 || held == pool_.end()) {
          continue;
        }
        std::vector<Run> keys;
        int64_t rows = 0;
        for (const PoolRun& run : held->second) {
          if (Sees(range.tokens, run)) {
            keys.push_back({run.begin, 1, run.run.count, 0});
            rows += run.run.count;
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
  bool Sees(const TokenRange& range, const PoolRun& held) const {
    const int64_t token = held.run.first;
    const bool own = held.from == rank_ && token >= range.begin && token < range.end;
    return options_.causal ? token < range.begin : !own;
  }

  // A query sees itself in every branch that selects it, so only the first query of a segment can
  // be alone there, and is alone altogether when all these branches agree.
  void AddAlone(int branch) {
    const int64_t rate = options_.branches[branch].dilation_rate;
    ForEachSegment(branch, [&](const LocalRange& range, size_t, const TokenRange& segment) {
      for (int head = 0; head < plan_.heads(); ++head) {
        const int64_t token = segment.begin + HeadOffset(options_, head, plan_.heads(), rate);
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
    for (size_t branch = 0; branch < options_.branches.size(); ++branch) {
      const int64_t rate = options_.branches[branch].dilation_rate;
      const TokenRange segment = SegmentsOf(branch).At(token);
      const int64_t offset = HeadOffset(options_, head, plan_.heads(), rate);
      const int64_t position = token - segment.begin;
      if (position % rate != offset) {
        continue;
      }
      const int64_t seen = options_.causal ? position + 1 : segment.size();
      if (static_cast<int>(branch) < finder || SelectedBefore(seen, offset, rate) != 1) {
        return false;
      }
    }
    return true;
  }

  const DilatedAttentionOptions& options_;
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
      sum += sizeof(Part) + part.queries.bytes() + part.keys.bytes() +
             part.gates.size() * sizeof(int64_t);
    }
  }
  const auto add = [&sum](const Message& message) {
    for (const RowSet& set : message.local) {
      sum += sizeof(RowSet) + set.bytes();
    }
  };
  std::for_each(outgoing.begin(), outgoing.end(), add);
  add(kept);
  return sum + alone.bytes() + alone_keys.bytes() +
         (own_tokens.size() + pool_tokens.size()) * sizeof(Run);
}

RankParts MakeRankParts(const AttentionPlan& plan, int rank) {
  const auto* dilated = std::get_if<DilatedAttentionOptions>(&plan.pattern());
  return dilated != nullptr
             ? Builder(*dilated, plan, rank).Build()
             : MakeBlockParts(std::get<BlockSparseAttentionOptions>(plan.pattern()), plan, rank);
}

}  // namespace ringmaster::attention
