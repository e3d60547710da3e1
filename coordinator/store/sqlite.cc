#include "coordinator/store/sqlite.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kShownSqlMax = 60;

absl::StatusCode CodeFor(sqlite3* database, int code) {
  switch (code & 0xFF) {
    case SQLITE_OK:
      return absl::StatusCode::kOk;
    case SQLITE_FULL:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::StatusCode::kUnavailable;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::StatusCode::kDataLoss;
    case SQLITE_IOERR: {
      // SQLite says FULL for ENOSPC in a plain write only; not for quotas, nor when it grows the
      // log's index.
      const int system = sqlite3_system_errno(database);
      const bool space = code == SQLITE_IOERR_SHMSIZE || system == ENOSPC || system == EDQUOT;
      // After a failed fsync the kernel may have dropped the pages: what is on disk is unknown.
      const bool sync = code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC;
      return space && !sync ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal;
    }
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status StatusFrom(sqlite3* database, int code, absl::string_view what) {
  const absl::StatusCode status = CodeFor(database, code);
  if (status == absl::StatusCode::kOk) return absl::OkStatus();
  return absl::Status(status, absl::StrCat("store: ", what, ": ", sqlite3_errstr(code), " (", code,
                                           "): ", sqlite3_errmsg(database)));
}

absl::Status Execute(sqlite3* database, const std::string& sql) {
  const int code = sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr);
  absl::Status status = StatusFrom(database, code, sql.substr(0, kShownSqlMax));
  if (!status.ok() && sqlite3_get_autocommit(database) == 0) {
    // What failed is reported; a rollback that fails too leaves the same state as a crash would.
    (void)sqlite3_exec(database, "ROLLBACK", nullptr, nullptr, nullptr);
  }
  return status;
}

absl::StatusOr<Statement> Prepare(sqlite3* database, absl::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v2(database, sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  RETURN_IF_ERROR(StatusFrom(database, code, sql));
  return Statement(statement);
}

absl::StatusOr<int64_t> QueryInteger(sqlite3* database, const std::string& sql) {
  ASSIGN_OR_RETURN(const Statement statement, Prepare(database, sql));
  const int code = sqlite3_step(statement.get());
  if (code != SQLITE_ROW) return StatusFrom(database, code, sql);
  return sqlite3_column_int64(statement.get(), 0);
}

}  // namespace ringmaster::coordinator
