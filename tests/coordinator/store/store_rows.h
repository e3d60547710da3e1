#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "coordinator/store/store.h"

namespace ringmaster::coordinator {

// All rows, whatever their table.
inline std::map<std::string, std::string> RowsOf(Store& store) {
  std::map<std::string, std::string> rows;
  const absl::StatusOr<StoredState> state = store.Load();
  EXPECT_TRUE(state.ok()) << state.status();
  if (state.ok()) {
    for (const Row& row : state->rows) rows[row.key] = row.value;
  }
  return rows;
}

inline RowChange Put(const std::string& key, const std::string& value) {
  return {.table = Table::kJobs, .key = key, .value = value};
}

inline RowChange Erase(const std::string& key) { return {.table = Table::kJobs, .key = key}; }

}  // namespace ringmaster::coordinator
