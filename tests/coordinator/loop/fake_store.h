#pragma once

#include <map>
#include <string>
#include <utility>

#include "coordinator/store/store.h"

namespace ringmaster::coordinator {

// A store in memory that counts commits and fails on demand.
class FakeStore : public Store {
 public:
  // What Commit() returns next, and from then on; rows are kept only when it is OK.
  absl::Status next;
  // With a reserve, releasing it makes commits work again.
  bool reserve_helps = false;
  bool reserved = true;
  int commits = 0;
  std::map<std::pair<Table, std::string>, std::string> rows;

  absl::StatusOr<StoredState> Load() override {
    StoredState state;
    for (const auto& [key, value] : rows) {
      state.rows.push_back({.table = key.first, .key = key.second, .value = value});
    }
    return state;
  }

  absl::Status Commit(absl::Span<const RowChange> changes) override {
    ++commits;
    if (!next.ok() && (reserved || !reserve_helps)) return next;
    for (const RowChange& row : changes) {
      if (row.value.has_value()) {
        rows[{row.table, row.key}] = *row.value;
      } else {
        rows.erase({row.table, row.key});
      }
    }
    return absl::OkStatus();
  }

  bool ReleaseReserve() override { return std::exchange(reserved, false); }
  bool HasReserve() const override { return reserved; }
  bool RestoreReserve() override {
    if (next.ok()) reserved = true;
    return next.ok();
  }
  int64_t SizeBytes() const override { return static_cast<int64_t>(rows.size()); }
};

}  // namespace ringmaster::coordinator
