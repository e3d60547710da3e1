#include "tests/simulation/fake_store.h"

#include <algorithm>
#include <utility>

namespace ringmaster::simulation {

using coordinator::RowChange;
using coordinator::Table;

coordinator::StoredState FakeStore::Load() const {
  coordinator::StoredState stored;
  for (const auto& [key, value] : rows_) {
    stored.rows.push_back({static_cast<Table>(key.first), key.second, value});
  }
  return stored;
}

std::vector<Queues> FakeStore::RecentQueues() const {
  std::vector<Queues> recent = {QueuesIn(rows_)};
  if (edited_.has_value()) recent.push_back(*edited_);
  return recent;
}

void FakeStore::Commit(const std::vector<RowChange>& changes) {
  edited_.reset();
  const bool edits = std::any_of(changes.begin(), changes.end(), [](const RowChange& change) {
    return change.table == Table::kQueues;
  });
  if (edits) edited_ = QueuesIn(rows_);
  for (const RowChange& change : changes) {
    const std::pair key(static_cast<int>(change.table), change.key);
    if (change.value.has_value()) {
      rows_[key] = *change.value;
    } else {
      rows_.erase(key);
    }
  }
}

}  // namespace ringmaster::simulation
