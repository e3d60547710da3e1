#pragma once

#include <optional>
#include <vector>

#include "coordinator/core/events.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// The coordinator's rows, which outlive its processes.
class FakeStore {
 public:
  const Rows& rows() const { return rows_; }
  coordinator::StoredState Load() const;
  void Commit(const std::vector<coordinator::RowChange>& changes);

  // As they are stored, and, where the last commit changed any, as they were before it: what was
  // asked before they were edited may be answered by the same commit.
  std::vector<Queues> RecentQueues() const;

  // Commits may fail.
  bool full = false;

 private:
  Rows rows_;
  std::optional<Queues> edited_;
};

}  // namespace ringmaster::simulation
