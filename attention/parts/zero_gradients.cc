#include "attention/parts/zero_gradients.h"

#include <algorithm>
#include <utility>

namespace ringmaster::attention {
namespace {

// Rows of single places, to be asked for and to be crossed out.
class Places {
 public:
  explicit Places(const RowSet& rows) {
    for (const Run& run : rows.runs) {
      for (int64_t i = 0; i < run.count; ++i) {
        places_.push_back({run.head, run.first + i * run.step});
      }
    }
    std::sort(places_.begin(), places_.end());
    places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
    crossed_out_.resize(places_.size());
  }

  bool HasAll(const Run& run) const {
    for (int64_t i = 0; i < run.count; ++i) {
      if (!std::binary_search(places_.begin(), places_.end(),
                              Place{run.head, run.first + i * run.step})) {
        return false;
      }
    }
    return true;
  }

  void CrossOut(const Run& run) {
    const int64_t last = run.first + (run.count - 1) * run.step;
    for (auto place = std::lower_bound(places_.begin(), places_.end(), Place{run.head, run.first});
         place != places_.end() && *place <= Place{run.head, last}; ++place) {
      if ((place->second - run.first) % run.step == 0) {
        crossed_out_[place - places_.begin()] = true;
      }
    }
  }

  // What is left, as token * heads + head.
  std::vector<int64_t> Numbers(int heads) const {
    std::vector<int64_t> numbers;
    for (size_t i = 0; i < places_.size(); ++i) {
      if (!crossed_out_[i]) {
        numbers.push_back(places_[i].second * heads + places_[i].first);
      }
    }
    std::sort(numbers.begin(), numbers.end());
    return numbers;
  }

 private:
  using Place = std::pair<int64_t, int64_t>;  // head, token
  std::vector<Place> places_;
  std::vector<bool> crossed_out_;
};

// Crosses out the keys that queries beside `alone` see. In a group of several keys there is such a
// query to each: none of its queries that sees the last one is alone.
void CrossOutSeen(const Part& part, const Places& alone, Places* keys) {
  for (int64_t group = 0; group < part.keys.groups(); ++group) {
    const auto of_group = [group](const RowSet& rows, const auto& visit) {
      return std::all_of(rows.runs.begin() + rows.group_begin[group],
                         rows.runs.begin() + rows.group_begin[group + 1], visit);
    };
    const bool by_alone =
        part.keys.rows_per_group == 1 &&
        of_group(part.queries, [&alone](const Run& run) { return alone.HasAll(run); });
    if (!by_alone) {
      of_group(part.keys, [keys](const Run& run) {
        keys->CrossOut(run);
        return true;
      });
    }
  }
}

}  // namespace

ZeroGradients FindZeroGradients(const RankParts& rank, int heads, int kv_heads) {
  if (rank.alone.runs.empty()) {
    return {};
  }
  const Places queries(rank.alone);
  Places keys(rank.alone_keys);
  for (const Part& part : rank.local) {
    CrossOutSeen(part, queries, &keys);
  }
  // What other ranks need of this one, or its own other ranges.
  const auto cross_out = [&keys](const RankParts::Message& message) {
    for (const RowSet& rows : message.local) {
      for (const Run& run : rows.runs) {
        keys.CrossOut(run);
      }
    }
  };
  std::for_each(rank.outgoing.begin(), rank.outgoing.end(), cross_out);
  cross_out(rank.kept);
  return {queries.Numbers(heads), keys.Numbers(kv_heads)};
}

}  // namespace ringmaster::attention
