#pragma once

#include <optional>

#include "absl/strings/string_view.h"
#include "coordinator/core/events.h"

namespace ringmaster::coordinator {

// What the core's tables are called in a database: names may be added, never changed.
absl::string_view KindOf(Table table);

// Nullopt for a name that this program does not know.
std::optional<Table> TableOf(absl::string_view kind);

}  // namespace ringmaster::coordinator
