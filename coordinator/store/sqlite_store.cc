#include "coordinator/store/sqlite_store.h"

#include <sys/stat.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/store/migrations.h"
#include "coordinator/store/record_kinds.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

constexpr char kFileName[] = "coordinator.db";

absl::StatusOr<Database> OpenDatabase(const std::string& path, const SqliteStoreOptions& options) {
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &raw,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                                   options.vfs.empty() ? nullptr : options.vfs.c_str());
  Database database(raw);
  RETURN_IF_ERROR(StatusFrom(raw, code, absl::StrCat("open ", path)));
  sqlite3_extended_result_codes(raw, 1);
  sqlite3_busy_timeout(raw, static_cast<int>(absl::ToInt64Milliseconds(options.busy_timeout)));
  return database;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const SqliteStoreOptions& options) {
  auto store = std::unique_ptr<SqliteStore>(new SqliteStore(options));
  absl::Status begun = store->Begin();
  // The disk is full. A coordinator that does not start can cancel nothing and recover no ring.
  const bool full = absl::IsResourceExhausted(begun) && store->ReleaseReserve();
  if (full) begun = store->Begin();
  RETURN_IF_ERROR(begun);
  // What is left of a full disk is for what follows; the reserve comes back with the room.
  if (full || !options.directory->Reserve(options.reserve_bytes, /*spare=*/0).ok()) {
    SPDLOG_WARN("store: no room to set {} bytes aside beside the database", options.reserve_bytes);
  }
  return store;
}

absl::Status SqliteStore::Begin() {
  ASSIGN_OR_RETURN(database_, OpenDatabase(options_.directory->File(kFileName), options_));
  sqlite3* database = database_.get();
  // First, as it refuses a database that is not ours, which must stay as it is.
  RETURN_IF_ERROR(Migrate(database, Migrations()));
  // WAL: one flush for a commit. Not in exclusive mode, so that people can look with a shell.
  RETURN_IF_ERROR(Execute(database,
                          "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                          "PRAGMA journal_size_limit = 16777216;"));
  RETURN_IF_ERROR(
      Execute(database, "UPDATE coordinator SET value = value + 1 WHERE name = 'epoch'"));
  ASSIGN_OR_RETURN(epoch_,
                   QueryInteger(database, "SELECT value FROM coordinator WHERE name = 'epoch'"));
  ASSIGN_OR_RETURN(upsert_, Prepare(database,
                                    "INSERT INTO records (kind, key, value) VALUES (?1, ?2, ?3)"
                                    " ON CONFLICT (kind, key) DO UPDATE SET value = ?3"));
  ASSIGN_OR_RETURN(erase_, Prepare(database, "DELETE FROM records WHERE kind = ?1 AND key = ?2"));
  return absl::OkStatus();
}

absl::StatusOr<Database> SqliteStore::Connect() const {
  ASSIGN_OR_RETURN(Database database, OpenDatabase(options_.directory->File(kFileName), options_));
  RETURN_IF_ERROR(Execute(database.get(), "PRAGMA synchronous = FULL"));
  return database;
}

absl::StatusOr<StoredState> SqliteStore::Load() {
  StoredState state;
  ASSIGN_OR_RETURN(
      const Statement select,
      Prepare(database_.get(), "SELECT kind, key, value FROM records ORDER BY kind, key"));
  const auto text = [&](int column) {
    // The blob first: asking for it fixes the size that sqlite3_column_bytes then returns.
    const void* bytes = sqlite3_column_blob(select.get(), column);
    return std::string(static_cast<const char*>(bytes), sqlite3_column_bytes(select.get(), column));
  };
  for (;;) {
    const int code = sqlite3_step(select.get());
    if (code == SQLITE_DONE) return state;
    if (code != SQLITE_ROW) return StatusFrom(database_.get(), code, "load");
    const std::string kind = text(0);
    const std::optional<Table> table = TableOf(kind);
    if (!table.has_value()) {
      return absl::DataLossError(absl::StrCat("store: records of unknown kind \"", kind, "\""));
    }
    state.rows.push_back({.table = *table, .key = text(1), .value = text(2)});
  }
}

absl::Status SqliteStore::Commit(absl::Span<const RowChange> rows) {
  if (rows.empty()) return absl::OkStatus();
  const auto writing = Writing();
  RETURN_IF_ERROR(Execute(database_.get(), "BEGIN IMMEDIATE"));
  for (const RowChange& row : rows) {
    if (absl::Status status = Apply(row); !status.ok()) {
      // SQLite has rolled back already after some errors; then this says that there is no
      // transaction.
      (void)sqlite3_exec(database_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
      return status;
    }
  }
  return Execute(database_.get(), "COMMIT");
}

absl::Status SqliteStore::Apply(const RowChange& row) {
  sqlite3_stmt* statement = row.value.has_value() ? upsert_.get() : erase_.get();
  const absl::string_view kind = KindOf(row.table);
  sqlite3_bind_text64(statement, 1, kind.data(), kind.size(), SQLITE_STATIC, SQLITE_UTF8);
  sqlite3_bind_text64(statement, 2, row.key.data(), row.key.size(), SQLITE_STATIC, SQLITE_UTF8);
  if (row.value.has_value()) {
    sqlite3_bind_blob64(statement, 3, row.value->data(), row.value->size(), SQLITE_STATIC);
  }
  const int code = sqlite3_step(statement);
  absl::Status status;
  if (code != SQLITE_DONE)
    status = StatusFrom(database_.get(), code, absl::StrCat("write ", kind, " ", row.key));
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
  return status;
}

int64_t SqliteStore::SizeBytes() const {
  int64_t bytes = 0;
  for (const char* suffix : {"", "-wal"}) {
    struct stat status = {};
    if (stat((options_.directory->File(kFileName) + suffix).c_str(), &status) == 0)
      bytes += status.st_size;
  }
  return bytes;
}

}  // namespace ringmaster::coordinator
