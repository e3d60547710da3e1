#include "coordinator/store/migrations.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/store/sqlite.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

// "RngM" as a number; tells our databases from others (`file` shows it too).
constexpr int64_t kApplicationId = 0x526e674d;

// `records` holds one serialized message of ringmaster.store per row; `kind` is the name of its
// table in the core. New kinds and new fields need no migration.
constexpr Migration kMigrations[] = {
    {1,
     "CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
     " PRIMARY KEY (kind, key));"
     "CREATE TABLE coordinator (name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
     "INSERT INTO coordinator VALUES ('epoch', 0);"},
    // Access tokens: not the core's, so not among its records.
    {2, "CREATE TABLE tokens (key TEXT PRIMARY KEY, value BLOB NOT NULL);"},
};

}  // namespace

absl::Span<const Migration> Migrations() { return kMigrations; }

absl::Status CheckSchemaVersion(int64_t version, absl::Span<const Migration> migrations) {
  const int newest = migrations.empty() ? 0 : migrations.back().version;
  if (version <= newest) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the database has schema version ", version,
                                                    ", this program knows up to ", newest,
                                                    ": start a newer ringmaster-coordinator"));
}

absl::Status Migrate(sqlite3* database, absl::Span<const Migration> migrations) {
  ASSIGN_OR_RETURN(int64_t version, QueryInteger(database, "PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t application, QueryInteger(database, "PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t tables,
                   QueryInteger(database, "SELECT count(*) FROM sqlite_schema"));
  if (application != kApplicationId && (application != 0 || version != 0 || tables != 0)) {
    return absl::FailedPreconditionError("the file is another program's SQLite database");
  }
  RETURN_IF_ERROR(CheckSchemaVersion(version, migrations));
  for (const Migration& step : migrations) {
    if (step.version <= version) continue;
    RETURN_IF_ERROR(Execute(
        database, absl::StrCat("BEGIN IMMEDIATE;", step.sql, "PRAGMA user_version = ", step.version,
                               ";PRAGMA application_id = ", kApplicationId, ";COMMIT;")));
    SPDLOG_INFO("store: schema version {} -> {}", version, step.version);
    version = step.version;
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::coordinator
