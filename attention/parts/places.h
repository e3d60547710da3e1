#pragma once

#include <cstdint>

#include "attention/parts/row_set.h"

namespace ringmaster::attention {

// Calls f(token * heads + head) for each row of a run, and of a set in its order.
template <typename F>
void ForEachPlace(const Run& run, int64_t heads, const F& f) {
  for (int64_t i = 0; i < run.count; ++i) {
    f((run.first + i * run.step) * heads + run.head);
  }
}

template <typename F>
void ForEachPlace(const RowSet& set, int64_t heads, const F& f) {
  for (const Run& run : set.runs) {
    ForEachPlace(run, heads, f);
  }
}

}  // namespace ringmaster::attention
