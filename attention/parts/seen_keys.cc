#include "attention/parts/seen_keys.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace ringmaster::attention {
namespace {

// Rows that may share some: those of a head which are congruent modulo a step.
using Line = std::tuple<int64_t, int64_t, int64_t>;

Line LineOf(const Run& run) { return {run.head, run.step, run.first % run.step}; }

void AddSeeing(const SeenKeys::Seeing& more, SeenKeys* seen) {
  if (!seen->queries.empty()) {
    SeenKeys::Seeing& last = seen->queries.back();
    const Run& a = last.queries;
    const Run& b = more.queries;
    if (!last.causal && !more.causal && a.head == b.head && a.step == 1 && b.step == 1 &&
        a.first + a.count == b.first) {
      last.queries.count += b.count;
      return;
    }
  }
  seen->queries.push_back(more);
}

}  // namespace

void KeyPieces::Add(const Part& part, int64_t group) {
  const RowSet& queries = part.queries;
  const RowSet& keys = part.keys;
  const int64_t before = keys.rows_per_group - queries.rows_per_group;
  int64_t query_begin = 0;
  for (size_t i = queries.group_begin[group]; i < queries.group_begin[group + 1]; ++i) {
    int64_t key_begin = 0;
    for (size_t j = keys.group_begin[group]; j < keys.group_begin[group + 1]; ++j) {
      const int64_t lead = part.causal ? before + query_begin - key_begin : 0;
      edges_.push_back({keys.runs[j], {queries.runs[i], lead, part.causal}});
      key_begin += keys.runs[j].count;
    }
    query_begin += queries.runs[i].count;
  }
}

std::vector<SeenKeys> KeyPieces::Take() {
  std::map<Line, std::vector<int64_t>> borders;  // numbers of rows in a line
  for (const auto& [keys, seeing] : edges_) {
    std::vector<int64_t>& line = borders[LineOf(keys)];
    line.push_back(keys.first / keys.step);
    line.push_back(keys.first / keys.step + keys.count);
  }
  std::map<Line, std::vector<SeenKeys>> pieces;  // between a border and the next
  for (auto& [line, rows] : borders) {
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    pieces[line].resize(rows.size() - 1);
  }
  for (const auto& [keys, seeing] : edges_) {
    const std::vector<int64_t>& rows = borders[LineOf(keys)];
    std::vector<SeenKeys>& of_line = pieces[LineOf(keys)];
    const int64_t begin = keys.first / keys.step;
    size_t i = std::lower_bound(rows.begin(), rows.end(), begin) - rows.begin();
    for (; rows[i] < begin + keys.count; ++i) {
      SeenKeys& piece = of_line[i];
      const int64_t skipped = rows[i] - begin;
      piece.run = {keys.first + skipped * keys.step, keys.step, rows[i + 1] - rows[i], keys.head};
      SeenKeys::Seeing part = seeing;
      part.lead -= part.causal ? skipped : 0;
      part.causal &= part.lead < piece.run.count - 1;
      // The last queries must see the first key.
      if (seeing.queries.count > 0 && (!part.causal || part.queries.count - 1 + part.lead >= 0)) {
        AddSeeing(part, &piece);
      }
    }
  }
  std::vector<SeenKeys> all;
  for (auto& [line, of_line] : pieces) {
    for (SeenKeys& piece : of_line) {
      if (piece.run.count > 0) all.push_back(std::move(piece));
    }
  }
  std::sort(all.begin(), all.end(), [](const SeenKeys& a, const SeenKeys& b) {
    return std::pair(a.run.first, a.run.head) < std::pair(b.run.first, b.run.head);
  });
  return all;
}

}  // namespace ringmaster::attention
