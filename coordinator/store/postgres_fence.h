#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/store/postgres.h"

namespace ringmaster::coordinator {

// Runs `changes`, parts of a WITH that change rows, as one statement and one transaction that does
// nothing unless the database's epoch is `epoch`: each part must select from `leader`, which has
// one row then and none otherwise. `values` are $2 and on. FailedPrecondition when a later
// coordinator has the database; other errors as RunPostgres().
absl::Status RunFenced(PGconn* connection, int64_t epoch, absl::string_view what,
                       absl::string_view changes, absl::Span<const PostgresValue> values);

}  // namespace ringmaster::coordinator
