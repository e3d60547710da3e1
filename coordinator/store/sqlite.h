#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sqlite3.h"

namespace ringmaster::coordinator {

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
};
struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;
using Statement = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

// The one translation of SQLite's result codes: no space or quota -> ResourceExhausted; locked by
// another program -> Unavailable; damaged -> DataLoss; all else -> Internal. The message says what
// was tried, and holds SQLite's own. REQUIRES: `code` is an extended one.
absl::Status StatusFrom(sqlite3* database, int code, absl::string_view what);

// Runs statements that return no rows; a transaction that they began is rolled back on failure.
absl::Status Execute(sqlite3* database, const std::string& sql);

// The first column of the first row. REQUIRES: `sql` returns one.
absl::StatusOr<int64_t> QueryInteger(sqlite3* database, const std::string& sql);

absl::StatusOr<Statement> Prepare(sqlite3* database, absl::string_view sql);

}  // namespace ringmaster::coordinator
