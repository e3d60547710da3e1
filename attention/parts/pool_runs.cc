#include "attention/parts/pool_runs.h"

#include <algorithm>
#include <utility>

namespace ringmaster::attention {
namespace {

int64_t LocalToken(const std::vector<LocalRange>& ranges, int64_t token) {
  const auto range =
      std::upper_bound(ranges.begin(), ranges.end(), token,
                       [](int64_t value, const LocalRange& r) { return value < r.tokens.end; });
  return range->local_begin + token - range->tokens.begin;
}

RankParts::Message LocalRows(const std::vector<LocalRange>& ranges, int peer,
                             const std::vector<RowRun>& runs) {
  RankParts::Message message{.peer = peer};
  int branch = -1;
  for (const RowRun& run : runs) {
    if (run.branch != branch) {
      branch = run.branch;
      message.local.emplace_back().group_begin.push_back(0);
    }
    RowSet& set = message.local.back();
    set.runs.push_back({LocalToken(ranges, run.first), run.step, run.count, run.kv_head});
    set.rows_per_group += run.count;
    set.group_begin.back() = set.runs.size();
    message.rows += run.count;
  }
  return message;
}

}  // namespace

std::vector<LocalRange> LocalRanges(const ShardMap& map, int rank) {
  std::vector<LocalRange> ranges;
  int64_t begin = 0;
  for (const TokenRange& range : map.Ranges(rank)) {
    ranges.push_back({range, begin});
    begin += range.size();
  }
  return ranges;
}

std::vector<PoolRun> AddMessages(const AttentionPlan& plan, int rank, RankParts* parts) {
  const std::vector<LocalRange> ranges = LocalRanges(plan.map(), rank);
  for (const LocalRange& range : ranges) {
    parts->own_tokens.push_back({range.tokens.begin, 1, range.tokens.size(), 0});
  }
  std::vector<PoolRun> pool;
  for (int peer = 0; peer < plan.map().ranks(); ++peer) {
    const std::vector<RowRun> runs = plan.Runs(peer, rank);
    RankParts::Message message{.peer = peer};
    if (peer == rank) {
      message = LocalRows(ranges, peer, runs);
    }
    message.begin = parts->pool_rows;
    for (const RowRun& run : runs) {
      pool.push_back({peer, run, parts->pool_rows});
      parts->pool_tokens.push_back({run.first, run.step, run.count, 0});
      parts->pool_rows += run.count;
    }
    message.rows = parts->pool_rows - message.begin;
    if (peer == rank) {
      parts->kept = std::move(message);
      continue;
    }
    if (message.rows > 0) {
      parts->incoming.push_back(std::move(message));
    }
    RankParts::Message outgoing = LocalRows(ranges, peer, plan.Runs(rank, peer));
    if (outgoing.rows > 0) {
      outgoing.begin = parts->outgoing_rows;
      parts->outgoing_rows += outgoing.rows;
      parts->outgoing.push_back(std::move(outgoing));
    }
  }
  return pool;
}

void AddGroup(RowSet* set, const Run* runs, size_t size, int64_t rows) {
  set->runs.insert(set->runs.end(), runs, runs + size);
  set->group_begin.push_back(set->runs.size());
  set->rows_per_group = rows;
}

void CloseGroup(RowSet* set) {
  if (!set->runs.empty()) {
    set->group_begin.push_back(set->runs.size());
    set->rows_per_group = static_cast<int64_t>(set->runs.size());
  }
}

}  // namespace ringmaster::attention
