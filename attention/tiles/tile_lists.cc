#include "attention/tiles/tile_lists.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "attention/parts/seen_keys.h"
#include "attention/tiles/tile_order.h"

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

// Problem `group` of a part.
struct Group {
  const Part* part;
  int64_t group;
};
using Groups = std::vector<Group>;

// Calls f(token * heads + head) for each row.
template <typename F>
void ForEachPlace(const Run& run, int heads, const F& f) {
  for (int64_t i = 0; i < run.count; ++i) {
    f((run.first + i * run.step) * heads + run.head);
  }
}

class Builder {
 public:
  Builder(const RankParts& parts, const TileShape& shape)
      : parts_(parts), shape_(shape), tile_rows_(kernels::TileRowsOf(shape.head_dim)) {}

  TileLists Build() {
    AddViews();
    AddForward();
    AddMerge();
    for (const auto& [branch, groups] : ByBranch(parts_.far, [](const Group&) { return true; })) {
      result_.backward_far.push_back(MakePass(groups, /*far=*/true, nullptr));
    }
    AddWindows();
    return std::move(result_);
  }

 private:
  // A single row has no step, which keeps rates beyond the sequence out of the views.
  static int64_t StepOf(const Run& run) { return run.count == 1 ? 1 : run.step; }

  void AddViews() {
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
  }

  TileRows RowsOf(const Run& run, int64_t skipped, bool pool) const {
    const int64_t step = StepOf(run);
    return {pool ? result_.pool_view() : views_.at(step), static_cast<int32_t>(run.head),
            static_cast<int32_t>(run.first % step),
            static_cast<int32_t>(run.first / step + skipped)};
  }

  // The problems that `take` accepts.
  template <typename F>
  static std::map<int, Groups> ByBranch(const std::vector<Part>& parts, const F& take) {
    std::map<int, Groups> branches;
    for (const Part& part : parts) {
      for (int64_t group = 0; group < part.queries.groups(); ++group) {
        if (take(Group{&part, group})) {
          branches[part.branch].push_back({&part, group});
        }
      }
    }
    return branches;
  }

  // The branch whose tiles merge the others' parts, or -1: the last one that covers every place of
  // a rank which has all its keys itself.
  int LastBranch() const {
    std::map<int, int64_t> rows;
    for (const Part& part : parts_.local) {
      rows[part.branch] += part.queries.rows();
    }
    int last = -1;
    for (const auto& [branch, count] : rows) {
      last = parts_.far.empty() && count == shape_.tokens * shape_.heads ? branch : last;
    }
    return last;
  }

  void AddForward() {
    const int last = LastBranch();
    for (const bool far : {false, true}) {
      for (const Part& part : far ? parts_.far : parts_.local) {
        for (int64_t group = 0; group < part.queries.groups(); ++group) {
          const std::vector<Span> keys = SpansOf(part.keys, group);
          for (const Span& span : SpansOf(part.queries, group)) {
            if (part.branch == last) {
              AddQueries(span, keys, part, far, tile_rows_, &result_.last);
              continue;
            }
            AddQueries(span, keys, part, far, tile_rows_, far ? &result_.far : &result_.local);
            rows_.push_back(span.run);
            query_count_ += span.run.count;
          }
        }
      }
    }
    if (parts_.tile_order.has_value()) {
      for (TileLists::QueryTiles* lists : {&result_.local, &result_.far, &result_.last}) {
        SortTiles(*parts_.tile_order, lists->keys, &lists->tiles);
      }
    }
  }

  // Heavy tiles first within a run. Queries are numbered from query_count_ on.
  void AddQueries(const Span& span, const std::vector<Span>& key_spans, const Part& part, bool far,
                  int rows_of_tile, TileLists::QueryTiles* lists) const {
    const int64_t count = span.run.count;
    const int64_t before = part.keys.rows_per_group - part.queries.rows_per_group;
    for (int64_t at = (count - 1) / rows_of_tile * rows_of_tile; at >= 0; at -= rows_of_tile) {
      const int64_t rows = std::min<int64_t>(rows_of_tile, count - at);
      const auto keys_begin = static_cast<int32_t>(lists->keys.size());
      for (const Span& key : key_spans) {
        const int64_t diagonal = part.causal ? before + span.begin + at - key.begin : kAllVisible;
        if (rows - 1 + diagonal >= 0) {
          lists->keys.push_back({RowsOf(key.run, 0, far), static_cast<int32_t>(key.run.count),
                                 static_cast<int32_t>(diagonal)});
        }
      }
      lists->tiles.push_back({RowsOf(span.run, at, false), static_cast<int32_t>(rows), keys_begin,
                              static_cast<int32_t>(lists->keys.size()), query_count_ + at});
    }
  }

  // Queries are numbered in the order of merging, so that filling parts in in this order sorts
  // them. A place that the last tiles merge into has one result more.
  void AddMerge() {
    const bool merged_last = !result_.last.tiles.empty();
    std::vector<uint32_t> next(shape_.tokens * shape_.heads, merged_last ? 1 : 0);
    for (const Run& run : rows_) {
      ForEachPlace(run, shape_.heads, [&](int64_t place) { ++next[place]; });
    }
    std::vector<uint32_t> begin = {0};
    begin.reserve(next.size() + 1);
    for (uint32_t& place : next) {
      const uint32_t results = place;
      place = results > 1 ? begin.back() : kernels::kWhole;
      begin.push_back(begin.back() + (results > 1 ? results - (merged_last ? 1 : 0) : 0));
    }
    result_.slots.reserve(query_count_);
    for (const Run& run : rows_) {
      ForEachPlace(run, shape_.heads, [&](int64_t place) {
        result_.slots.push_back(next[place] == kernels::kWhole ? kernels::kWhole : next[place]++);
      });
    }
    if (begin.back() > 0) {
      result_.merge_begin = std::move(begin);
    }
  }

  // With `window`, all its keys are in the pass, also those that nobody sees.
  TileLists::Backward MakePass(const Groups& groups, bool far,
                               const TileLists::Window* window) const {
    TileLists::Backward pass;
    KeyPieces keys;
    for (const auto& [part, group] : groups) {
      keys.Add(*part, group);
      const std::vector<Span> key_spans = SpansOf(part->keys, group);
      for (const Span& span : SpansOf(part->queries, group)) {
        if (shape_.deterministic) {
          AddQueries(span, key_spans, *part, far, kernels::kBackwardTileRows, &pass.queries);
        }
      }
    }
    for (int head = 0; window != nullptr && head < shape_.kv_heads; ++head) {
      keys.AddUnseen({window->begin, 1, window->tokens, head});
    }
    for (const SeenKeys& seen : keys.Take()) {
      AddKeys(seen, far, &pass.keys);
    }
    if (parts_.tile_order.has_value()) {
      SortTiles(*parts_.tile_order, pass.queries.keys, &pass.queries.tiles);
      SortTiles(*parts_.tile_order, pass.keys.queries, &pass.keys.tiles);
    }
    return pass;
  }

  void AddKeys(const SeenKeys& keys, bool far, TileLists::KeyTiles* lists) const {
    for (int64_t at = 0; at < keys.run.count; at += kernels::kTileKeys) {
      const auto begin = static_cast<int32_t>(lists->queries.size());
      for (const SeenKeys::Seeing& seeing : keys.queries) {
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

  bool Exchanges() const { return parts_.pool_rows > 0 || parts_.outgoing_rows > 0; }

  // The tokens from the first to behind the last that a problem has.
  static std::pair<int64_t, int64_t> TokensOf(const Group& group) {
    int64_t begin = std::numeric_limits<int64_t>::max(), end = 0;
    for (const RowSet* set : {&group.part->queries, &group.part->keys}) {
      for (const Span& span : SpansOf(*set, group.group)) {
        begin = std::min(begin, span.run.first);
        end = std::max(end, span.run.first + (span.run.count - 1) * span.run.step + 1);
      }
    }
    return {begin, end};
  }

  void CutWindows() {
    std::vector<std::pair<int64_t, int64_t>> problems;
    if (!Exchanges()) {
      for (const Part& part : parts_.local) {
        for (int64_t group = 0; group < part.queries.groups(); ++group) {
          problems.push_back(TokensOf({&part, group}));
        }
      }
    }
    std::sort(problems.begin(), problems.end());
    int64_t begin = 0, reached = 0;
    const auto close = [&](int64_t end) {
      result_.windows.push_back({.begin = begin, .tokens = end - begin});
      begin = end;
    };
    for (const auto& [first, end] : problems) {
      if (first >= reached && reached - begin >= shape_.window_tokens && reached > begin) {
        close(reached);
      }
      reached = std::max(reached, end);
    }
    close(shape_.tokens);
  }

  void AddWindows() {
    CutWindows();
    result_.summed.assign(shape_.tokens * shape_.kv_heads, 0);
    for (TileLists::Window& window : result_.windows) {
      const auto branches = ByBranch(parts_.local, [&window](const Group& group) {
        const int64_t first =
            group.part->queries.runs[group.part->queries.group_begin[group.group]].first;
        return first >= window.begin && first < window.begin + window.tokens;
      });
      AddPasses(branches, &window);
    }
    if (std::all_of(result_.summed.begin(), result_.summed.end(),
                    [](uint8_t x) { return x == 0; })) {
      result_.summed.clear();
    }
  }

  static int64_t RowsOf(const TileLists::Backward& pass) {
    return std::accumulate(pass.keys.tiles.begin(), pass.keys.tiles.end(), int64_t{0},
                           [](int64_t rows, const KeyTile& tile) { return rows + tile.count; });
  }

  // Marks the sums that a pass adds to. Returns how many none before has.
  int64_t Sum(const TileLists::Backward& pass) {
    int64_t fresh = 0;
    for (const KeyTile& tile : pass.keys.tiles) {
      const int64_t step = result_.steps[tile.rows.view];
      const int64_t first = tile.rows.residue + tile.rows.first * step;
      ForEachPlace({first, step, tile.count, tile.rows.head}, shape_.kv_heads, [&](int64_t place) {
        fresh += result_.summed[place] == 0 ? 1 : 0;
        result_.summed[place] = 1;
      });
    }
    return fresh;
  }

  // Passes of many keys come first, so that later ones find their sums stored; the last of those
  // that have all keys finishes, unless gradients come from other ranks yet.
  void AddPasses(const std::map<int, Groups>& branches, TileLists::Window* window) {
    using kernels::KeyGradients;
    std::vector<TileLists::Backward>& passes = window->passes;
    for (const auto& [branch, groups] : branches) {
      // A mask is one branch.
      passes.push_back(
          MakePass(groups, /*far=*/false, parts_.tile_order.has_value() ? window : nullptr));
    }
    std::stable_sort(passes.begin(), passes.end(),
                     [](const auto& a, const auto& b) { return RowsOf(a) > RowsOf(b); });
    const int64_t all = window->tokens * shape_.kv_heads;
    const auto finisher = std::find_if(passes.rbegin(), passes.rend(),
                                       [all](const auto& pass) { return RowsOf(pass) == all; });
    if (!Exchanges() && finisher != passes.rend()) {
      finisher->key_gradients = KeyGradients::kFinish;
      std::rotate(passes.rbegin(), finisher, finisher + 1);
    }
    const auto sums_end = passes.end() - (window->finishes() ? 1 : 0);
    int64_t fresh = 0;
    for (auto pass = passes.begin(); pass != sums_end; ++pass) {
      const int64_t more = Sum(*pass);
      pass->key_gradients = more > 0 ? KeyGradients::kStore : KeyGradients::kAdd;
      window->zero_keys |= more > 0 && more < RowsOf(*pass);
      fresh += more;
    }
    window->zero_keys |= !window->finishes() && fresh < all;
    if (window->zero_keys) {
      std::for_each(passes.begin(), sums_end,
                    [](auto& pass) { pass.key_gradients = KeyGradients::kAdd; });
    }
  }

  const RankParts& parts_;
  const TileShape shape_;
  const int tile_rows_;
  std::map<int64_t, int> views_;  // by step
  std::vector<Run> rows_;         // of numbered queries, in their order
  int64_t query_count_ = 0;
  TileLists result_;
};

size_t BytesOf(const TileLists::QueryTiles& lists) {
  return lists.tiles.size() * sizeof(Tile) + lists.keys.size() * sizeof(TileKeys);
}

}  // namespace

size_t TileLists::bytes() const {
  size_t sum = sizeof(TileLists) + BytesOf(local) + BytesOf(far) + BytesOf(last) + summed.size() +
               (merge_begin.size() + slots.size()) * sizeof(uint32_t);
  const auto add = [&sum](const std::vector<Backward>& passes) {
    for (const Backward& pass : passes) {
      sum += BytesOf(pass.queries) + pass.keys.tiles.size() * sizeof(KeyTile) +
             pass.keys.queries.size() * sizeof(TileKeys);
    }
  };
  add(backward_far);
  for (const Window& window : windows) {
    add(window.passes);
  }
  return sum;
}

TileLists MakeTileLists(const RankParts& parts, const TileShape& shape) {
  return Builder(parts, shape).Build();
}

}  // namespace ringmaster::attention
