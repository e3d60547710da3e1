#include "coordinator/store/record_kinds.h"

#include <utility>

namespace ringmaster::coordinator {
namespace {

constexpr std::pair<Table, absl::string_view> kKinds[] = {{Table::kJobs, "jobs"},
                                                          {Table::kRequests, "requests"},
                                                          {Table::kCheckpoints, "checkpoints"},
                                                          {Table::kCordons, "cordons"},
                                                          {Table::kQueues, "queues"}};

}  // namespace

absl::string_view KindOf(Table table) {
  for (const auto& [known, kind] : kKinds) {
    if (known == table) return kind;
  }
  return "";
}

std::optional<Table> TableOf(absl::string_view kind) {
  for (const auto& [table, known] : kKinds) {
    if (known == kind) return table;
  }
  return std::nullopt;
}

}  // namespace ringmaster::coordinator
