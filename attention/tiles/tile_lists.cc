#include "attention/tiles/tile_lists.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "attention/parts/places.h"
#include "attention/parts/seen_keys.h"
#include "attention/plan/plan.h"
#include "attention/tiles/joint_runs.h"
#include "attention/tiles/tile_order.h"

namespace ringmaster::attention {
namespace {

using kernels::kAllVisible;
using kernels::KeyTile;
using kernels::Tile;
using kernels::TileKeys;
using kernels::TileRows;

// Problem `group` of a part.
struct Group {
  const Part* part;
  int64_t group;
};
using Groups = std::vector<Group>;

// Queries that have numbers, in their order.
struct NumberedRows {
  Run run;
  bool far;
};

class Builder {
 public:
  Builder(const RankParts& parts, const TileShape& shape)
      : parts_(parts), shape_(shape), tile_rows_(kernels::TileRowsOf(shape.head_dim)) {}

  TileLists Build() {
    AddMerge(AddForward());
    for (const auto& [branch, groups] : ByBranch(parts_.far, &All)) {
      result_.backward_far.push_back(MakePass(groups, /*far=*/true, nullptr));
    }
    JoinAdding(&result_.backward_far);
    AddWindows();
    return std::move(result_);
  }

 private:
  // A single row has no step, which keeps rates beyond the sequence out of the views.
  static int64_t StepOf(const Run& run) { return run.count == 1 ? 1 : run.step; }

  std::set<int64_t> StepsOfParts() const {
    std::set<int64_t> steps;
    for (const std::vector<Part>* parts : {&parts_.local, &parts_.far}) {
      for (const Part& part : *parts) {
        for (const Run& run : part.queries.runs) steps.insert(StepOf(run));
      }
    }
    return steps;
  }

  void AddViews(std::set<int64_t> steps, const JointRuns& joint) {
    for (const JointRun& run : joint.runs) steps.insert(StepOf(run.rows));
    for (const int64_t step : steps) {
      views_.emplace(step, result_.pool_view());
      result_.steps.push_back(step);
    }
  }

  TileRows RowsOf(const Run& run, int64_t skipped, bool pool) const {
    const int64_t step = StepOf(run);
    return {pool ? result_.pool_view() : views_.at(step), static_cast<int32_t>(run.head),
            static_cast<int32_t>(run.first % step),
            static_cast<int32_t>(run.first / step + skipped)};
  }

  static bool All(const Group& /*group*/) { return true; }

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

  // The last branch that covers every place and whose keys are all at hand, or -1.
  int WholeBranch() const {
    std::map<int, int64_t> rows;
    for (const Part& part : parts_.local) rows[part.branch] += part.queries.rows();
    for (const Part& part : parts_.far) rows.erase(part.branch);
    int last = -1;
    for (const auto& [branch, count] : rows) {
      last = count == shape_.tokens * shape_.heads ? branch : last;
    }
    return last;
  }

  // Returns what the last tiles have.
  JointRuns AddForward() {
    const int whole = WholeBranch();
    const std::set<int64_t> steps = StepsOfParts();
    const JointRuns joint = whole < 0 ? JointRuns()
                                      : JoinBranches(parts_, whole, shape_.head_dim, shape_.joined,
                                                     steps, kernels::kMaxViews - 1);
    AddViews(steps, joint);
    int64_t last_count = 0;
    for (const JointRun& run : joint.runs) {
      AddQueries(run, /*far=*/false, tile_rows_, last_count, &result_.last);
      last_count += run.rows.count;
    }
    for (const bool far : {false, true}) {
      for (const Part& part : far ? parts_.far : parts_.local) {
        if (joint.branches.count(part.branch) > 0) continue;
        for (int64_t group = 0; group < part.queries.groups(); ++group) {
          for (const Span& span : SpansOf(part.queries, group)) {
            AddQueries({span.run, {{&part, group, span.begin}}}, far, tile_rows_, query_count_,
                       far ? &result_.far : &result_.local);
            Number(span.run, far);
          }
        }
      }
    }
    for (TileLists::QueryTiles* lists : {&result_.local, &result_.last, &result_.far}) {
      Order(lists->keys, &lists->tiles);
    }
    return joint;
  }

  void Number(const Run& rows, bool far) {
    rows_.push_back({rows, far});
    query_count_ += rows.count;
  }

  // Heavy tiles first within a run. Queries are numbered from `first_row` on.
  void AddQueries(const JointRun& run, bool far, int rows_of_tile, int64_t first_row,
                  TileLists::QueryTiles* lists) const {
    const auto problems = KeysOf(run);
    const int64_t count = run.rows.count;
    for (int64_t at = (count - 1) / rows_of_tile * rows_of_tile; at >= 0; at -= rows_of_tile) {
      const int64_t rows = std::min<int64_t>(rows_of_tile, count - at);
      const auto keys_begin = static_cast<int32_t>(lists->keys.size());
      for (const auto& [problem, spans] : problems) {
        for (const Span& keys : spans) {
          const int64_t diagonal = DiagonalOf(*problem, at, keys);
          if ((rows - 1) * problem->step + diagonal >= 0) {
            lists->keys.push_back({RowsOf(keys.run, 0, far), static_cast<int32_t>(keys.run.count),
                                   static_cast<int32_t>(diagonal),
                                   static_cast<int32_t>(problem->step)});
          }
        }
      }
      lists->tiles.push_back({RowsOf(run.rows, at, false), static_cast<int32_t>(rows), keys_begin,
                              static_cast<int32_t>(lists->keys.size()), first_row + at});
    }
  }

  // Queries are numbered in the order of merging, so that filling parts in in this order sorts
  // them.
  void AddMerge(const JointRuns& joint) {
    const bool last = !joint.runs.empty();
    std::vector<uint32_t> results(shape_.tokens * shape_.heads, last ? 1 : 0);
    std::vector<bool> mixed(results.size(), !last);
    for (const auto& [run, far] : rows_) {
      ForEachPlace(run, shape_.heads, [&, far = far](int64_t place) {
        ++results[place];
        if (far) mixed[place] = true;
      });
    }
    // The next part of each place.
    std::vector<uint32_t> next(results.size(), kernels::kWhole);
    uint32_t parts = 0;
    std::vector<uint32_t> begin = {0};
    begin.reserve(results.size() + 1);
    for (size_t place = 0; place < results.size(); ++place) {
      if (!mixed[place] && results[place] > 1) {
        next[place] = parts;
        parts += results[place] - 1;
      }
      begin.push_back(parts);
    }
    if (parts > 0) result_.merge_begin = std::move(begin);
    for (size_t place = 0; place < results.size(); ++place) {
      if (!mixed[place] || results[place] <= 1) continue;
      result_.mix_places.push_back(static_cast<uint32_t>(place));
      result_.mix_begin.push_back(parts);
      next[place] = parts;
      parts += results[place];
    }
    if (!result_.mix_places.empty()) result_.mix_begin.push_back(parts);
    const auto take = [&](int64_t place) {
      return next[place] == kernels::kWhole ? kernels::kWhole : next[place]++;
    };
    for (const JointRun& run : joint.runs) {
      if (result_.mix_places.empty()) break;
      ForEachPlace(run.rows, shape_.heads, [&](int64_t place) {
        result_.last_slots.push_back(mixed[place] ? take(place) : kernels::kWhole);
      });
    }
    result_.slots.reserve(query_count_);
    for (const NumberedRows& rows : rows_) {
      ForEachPlace(rows.run, shape_.heads,
                   [&](int64_t place) { result_.slots.push_back(take(place)); });
    }
  }

  // With `window`, all its keys are in the pass, also those that nobody sees.
  TileLists::Backward MakePass(const Groups& groups, bool far,
                               const TileLists::Window* window) const {
    TileLists::Backward pass;
    KeyPieces keys;
    for (const auto& [part, group] : groups) {
      keys.Add(*part, group);
      if (!shape_.deterministic) continue;
      for (const Span& span : SpansOf(part->queries, group)) {
        AddQueries({span.run, {{part, group, span.begin}}}, far, kernels::kBackwardTileRows,
                   /*first_row=*/0, &pass.queries);
      }
    }
    for (int head = 0; window != nullptr && head < shape_.kv_heads; ++head) {
      keys.AddUnseen({window->begin, 1, window->tokens, head});
    }
    for (const SeenKeys& seen : keys.Take()) {
      AddKeys(seen, far, &pass.keys);
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
    result_.key_sums.assign(shape_.tokens * shape_.kv_heads, 0);
    for (TileLists::Window& window : result_.windows) {
      const auto branches = ByBranch(parts_.local, [&window](const Group& group) {
        const int64_t first =
            group.part->queries.runs[group.part->queries.group_begin[group.group]].first;
        return first >= window.begin && first < window.begin + window.tokens;
      });
      AddPasses(branches, &window);
    }
    if (std::all_of(result_.key_sums.begin(), result_.key_sums.end(),
                    [](uint8_t x) { return x == 0; })) {
      result_.key_sums.clear();
    }
  }

  static int64_t RowsOf(const TileLists::Backward& pass) {
    return std::accumulate(pass.keys.tiles.begin(), pass.keys.tiles.end(), int64_t{0},
                           [](int64_t rows, const KeyTile& tile) { return rows + tile.count; });
  }

  // Calls that add to sums become one, and all are put in order: at the end of each call
  // multiprocessors are idle. What shares sums does not give the same bits every time.
  void JoinAdding(std::vector<TileLists::Backward>* passes) const {
    std::vector<TileLists::Backward> joined;
    for (TileLists::Backward& pass : *passes) {
      if (!shape_.deterministic && !joined.empty() &&
          pass.key_gradients == kernels::KeyGradients::kAdd &&
          joined.back().key_gradients == kernels::KeyGradients::kAdd) {
        Append(pass.keys, &joined.back().keys);
      } else {
        joined.push_back(std::move(pass));
      }
    }
    for (TileLists::Backward& pass : joined) {
      Order(pass.queries.keys, &pass.queries.tiles);
      Order(pass.keys.queries, &pass.keys.tiles);
    }
    *passes = std::move(joined);
  }
  static void Append(const TileLists::KeyTiles& from, TileLists::KeyTiles* to) {
    const auto moved = static_cast<int32_t>(to->queries.size());
    for (KeyTile tile : from.tiles) {
      tile.queries_begin += moved;
      tile.queries_end += moved;
      to->tiles.push_back(tile);
    }
    to->queries.insert(to->queries.end(), from.queries.begin(), from.queries.end());
  }

  template <typename AnyTile>
  void Order(const std::vector<TileKeys>& lists, std::vector<AnyTile>* tiles) const {
    const TileOrder order = parts_.tile_order.value_or(TileOrder::kHeavyFirst);
    if (parts_.tile_order.has_value()) SortTiles(order, lists, tiles);
    if (order == TileOrder::kHeavyFirst) SortLastTiles(lists, tiles);
  }

  // Marks sums that are added to before they are finished. Returns how many were not before.
  int64_t Sum(const TileLists::Backward& pass) {
    int64_t fresh = 0;
    for (const KeyTile& tile : pass.keys.tiles) {
      const int64_t step = result_.steps[tile.rows.view];
      const int64_t first = tile.rows.residue + tile.rows.first * step;
      ForEachPlace({first, step, tile.count, tile.rows.head}, shape_.kv_heads, [&](int64_t place) {
        fresh += result_.key_sums[place] == 0 ? 1 : 0;
        result_.key_sums[place] = kernels::kSumsBefore;
      });
    }
    return fresh;
  }

  // Marks those that the gradients of a pool's rows, the peers' and the own, are added to.
  void SumReturned() {
    const auto mark = [&](const RankParts::Message& message) {
      for (const RowSet& set : message.local) {
        for (const Run& run : set.runs) {
          ForEachPlace(run, shape_.kv_heads,
                       [&](int64_t place) { result_.key_sums[place] |= kernels::kSumsAfter; });
        }
      }
    };
    std::for_each(parts_.outgoing.begin(), parts_.outgoing.end(), mark);
    mark(parts_.kept);
  }

  // Passes of many keys come first, so that later ones find their sums stored; the last of those
  // that have all keys finishes.
  void AddPasses(const std::map<int, Groups>& branches, TileLists::Window* window) {
    using kernels::KeyGradients;
    std::vector<TileLists::Backward>& passes = window->passes;
    const int64_t all = window->tokens * shape_.kv_heads;
    for (const auto& [branch, groups] : branches) {
      // A mask is one branch.
      passes.push_back(
          MakePass(groups, /*far=*/false, parts_.tile_order.has_value() ? window : nullptr));
    }
    const auto finisher = std::find_if(passes.rbegin(), passes.rend(),
                                       [&](const auto& pass) { return RowsOf(pass) == all; });
    if (finisher != passes.rend()) {
      finisher->key_gradients = KeyGradients::kFinish;
      std::rotate(finisher.base() - 1, finisher.base(), passes.end());
    }
    const auto sums_end = passes.end() - (window->finishes() ? 1 : 0);
    std::stable_sort(passes.begin(), sums_end,
                     [](const auto& a, const auto& b) { return RowsOf(a) > RowsOf(b); });
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
    JoinAdding(&passes);
    SumReturned();
  }

  const RankParts& parts_;
  const TileShape shape_;
  const int tile_rows_;
  std::map<int64_t, int> views_;  // by step
  std::vector<NumberedRows> rows_;
  int64_t query_count_ = 0;
  TileLists result_;
};

size_t BytesOf(const TileLists::QueryTiles& lists) {
  return lists.tiles.size() * sizeof(Tile) + lists.keys.size() * sizeof(TileKeys);
}

}  // namespace

size_t TileLists::bytes() const {
  size_t sum = sizeof(TileLists) + BytesOf(local) + BytesOf(far) + BytesOf(last) + key_sums.size() +
               (slots.size() + last_slots.size() + merge_begin.size() + mix_places.size() +
                mix_begin.size()) *
                   sizeof(uint32_t);
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
