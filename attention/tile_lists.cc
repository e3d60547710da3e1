#include "attention/tile_lists.h"

#include <algorithm>
#include <map>
#include <utility>

namespace ringmaster::attention {
namespace {

using kernels::kAllVisible;
using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;
using kernels::TileRows;

// A run and the number of its first row among those of its group.
struct Span {
  Run run;
  int64_t begin = 0;
};

std::vector<Span> SpansOf(const RowSet& set, int64_t group) {
  std::vector<Span> spans;
  int64_t begin = 0;
  for (size_t i = set.group_begin[group]; i < set.group_begin[group + 1]; ++i) {
    spans.push_back({set.runs[i], begin});
    begin += set.runs[i].count;
  }
  return spans;
}

class Builder {
 public:
  Builder(const RankParts& parts, int64_t tokens, int heads, int kv_heads, int head_dim)
      : parts_(parts),
        tokens_(tokens),
        heads_(heads),
        kv_heads_(kv_heads),
        tile_rows_(kernels::TileRowsOf(head_dim)) {}

  TileLists Build() {
    for (const std::vector<Part>* parts : {&parts_.local, &parts_.far}) {
      for (const Part& part : *parts) {
        for (const Run& run : part.queries.runs) {
          views_.emplace(StepOf(run), 0);
        }
      }
    }
    for (auto& [step, view] : views_) {
      view = result_.pool_view();
      result_.steps.push_back(step);
    }
    AddPass(parts_.local, /*far=*/false, &result_.local, &result_.backward_local);
    AddPass(parts_.far, /*far=*/true, &result_.far, &result_.backward_far);
    AddMerge();
    return std::move(result_);
  }

 private:
  // A single row has no step, which keeps rates beyond the sequence out of the views.
  static int64_t StepOf(const Run& run) { return run.count == 1 ? 1 : run.step; }

  TileRows RowsOf(const Run& run, int64_t skipped, bool pool) const {
    const int64_t step = StepOf(run);
    return {pool ? result_.pool_view() : views_.at(step), static_cast<int32_t>(run.head),
            static_cast<int32_t>(run.first % step),
            static_cast<int32_t>(run.first / step + skipped)};
  }

  // Parts of one branch are neighbours.
  void AddPass(const std::vector<Part>& parts, bool far, TileLists::QueryTiles* forward,
               std::vector<TileLists::Backward>* backward) {
    for (size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
      TileLists::Backward branch;
      std::map<std::pair<int64_t, int64_t>, KeyRun> keys;
      for (; end < parts.size() && parts[end].branch == parts[begin].branch; ++end) {
        const Part& part = parts[end];
        for (int64_t group = 0; group < part.queries.groups(); ++group) {
          const std::vector<Span> key_spans = SpansOf(part.keys, group);
          for (const Span& span : SpansOf(part.queries, group)) {
            AddQueries(span, key_spans, part.causal, far, tile_rows_, forward);
            rows_.push_back(span.run);
            query_count_ += span.run.count;
            AddQueries(span, key_spans, part.causal, far, kernels::kBackwardTileRows,
                       &branch.queries);
            for (const Span& key : key_spans) {
              KeyRun& seen = keys[{key.run.first, key.run.head}];
              seen.run = key.run;
              seen.queries.push_back({span.run, span.begin - key.begin, part.causal});
            }
          }
        }
      }
      int64_t rows = 0;
      for (const auto& [place, seen] : keys) {
        AddKeys(seen, far, &branch.keys);
        rows += seen.run.count;
      }
      branch.all_keys = !far && rows == tokens_ * kv_heads_;
      backward->push_back(std::move(branch));
    }
  }

  // Keys and all queries that see them, whichever head these are of.
  struct Seeing {
    Run queries;
    int64_t lead;  // how many rows of the group the first query is behind the first key
    bool causal;
  };
  struct KeyRun {
    Run run;
    std::vector<Seeing> queries;
  };

  // Heavy tiles first within a run. Queries are numbered from query_count_ on.
  void AddQueries(const Span& span, const std::vector<Span>& key_spans, bool causal, bool far,
                  int rows_of_tile, TileLists::QueryTiles* lists) const {
    const int64_t count = span.run.count;
    for (int64_t at = (count - 1) / rows_of_tile * rows_of_tile; at >= 0; at -= rows_of_tile) {
      const int64_t rows = std::min<int64_t>(rows_of_tile, count - at);
      const auto keys_begin = static_cast<int32_t>(lists->keys.size());
      for (const Span& key : key_spans) {
        const int64_t diagonal = causal ? span.begin + at - key.begin : kAllVisible;
        if (rows - 1 + diagonal >= 0) {
          lists->keys.push_back({RowsOf(key.run, 0, far), static_cast<int32_t>(key.run.count),
                                 static_cast<int32_t>(diagonal)});
        }
      }
      lists->tiles.push_back({RowsOf(span.run, at, false), static_cast<int32_t>(rows), keys_begin,
                              static_cast<int32_t>(lists->keys.size()), query_count_ + at});
    }
  }

  void AddKeys(const KeyRun& keys, bool far, TileLists::KeyTiles* lists) const {
    for (int64_t at = 0; at < keys.run.count; at += kernels::kTileKeys) {
      const auto begin = static_cast<int32_t>(lists->queries.size());
      for (const Seeing& seeing : keys.queries) {
        const int64_t diagonal = seeing.causal ? seeing.lead - at : kAllVisible;
        if (seeing.queries.count - 1 + diagonal >= 0) {
          lists->queries.push_back({RowsOf(seeing.queries, 0, false),
                                    static_cast<int32_t>(seeing.queries.count),
                                    static_cast<int32_t>(diagonal)});
        }
      }
      lists->tiles.push_back(
          {RowsOf(keys.run, at, far),
           static_cast<int32_t>(std::min<int64_t>(kernels::kTileKeys, keys.run.count - at)), begin,
           static_cast<int32_t>(lists->queries.size())});
    }
  }

  // Queries are numbered in the order of merging, so that filling parts in in this order sorts
  // them.
  void AddMerge() {
    const auto for_each = [this](const auto& f) {
      for (const Run& run : rows_) {
        for (int64_t i = 0; i < run.count; ++i) {
          f((run.first + i * run.step) * heads_ + run.head);
        }
      }
    };
    std::vector<uint32_t> next(tokens_ * heads_, 0);
    for_each([&](int64_t place) { ++next[place]; });
    std::vector<uint32_t>& begin = result_.merge_begin;
    begin.assign(next.size() + 1, 0);
    for (size_t place = 0; place < next.size(); ++place) {
      const uint32_t queries = next[place];
      begin[place + 1] = begin[place] + (queries > 1 ? queries : 0);
      next[place] = queries > 1 ? begin[place] : kernels::kWhole;
    }
    result_.slots.reserve(query_count_);
    for_each([&](int64_t place) {
      result_.slots.push_back(next[place] == kernels::kWhole ? kernels::kWhole : next[place]++);
    });
  }

  const RankParts& parts_;
  const int64_t tokens_;
  const int heads_;
  const int kv_heads_;
  const int tile_rows_;
  std::map<int64_t, int> views_;  // by step
  std::vector<Run> rows_;         // of queries, in their order
  int64_t query_count_ = 0;
  TileLists result_;
};

size_t BytesOf(const TileLists::QueryTiles& lists) {
  return lists.tiles.size() * sizeof(Tile) + lists.keys.size() * sizeof(TileKeys);
}

}  // namespace

size_t TileLists::bytes() const {
  size_t sum = sizeof(TileLists) + BytesOf(local) + BytesOf(far) +
               (merge_begin.size() + slots.size()) * sizeof(uint32_t);
  for (const std::vector<Backward>* passes : {&backward_far, &backward_local}) {
    for (const Backward& pass : *passes) {
      sum += BytesOf(pass.queries) + pass.keys.tiles.size() * sizeof(KeyTile) +
             pass.keys.queries.size() * sizeof(TileKeys);
    }
  }
  return sum;
}

TileLists MakeTileLists(const RankParts& parts, int64_t tokens, int heads, int kv_heads,
                        int head_dim) {
  return Builder(parts, tokens, heads, kv_heads, head_dim).Build();
}

}  // namespace ringmaster::attention
