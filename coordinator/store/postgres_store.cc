#include "coordinator/store/postgres_store.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/store/migrations.h"
#include "coordinator/store/postgres_fence.h"
#include "coordinator/store/record_kinds.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

// Of a session: only its end gives the lock back. The number is "RngM", as in SQLite's databases.
constexpr char kLock[] = "SELECT pg_try_advisory_lock(1382967117)::int::bigint";

// Of a row that is changed twice the last change counts.
constexpr char kChanges[] =
    "change AS (SELECT DISTINCT ON (kind, key) kind, key, value"
    "  FROM leader, unnest($2, $3, $4) WITH ORDINALITY AS c (kind, key, value, place)"
    "  ORDER BY kind, key, place DESC),"
    " written AS (INSERT INTO records SELECT kind, key, value FROM change WHERE value IS NOT NULL"
    "  ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value),"
    " erased AS (DELETE FROM records r USING change c"
    "  WHERE c.value IS NULL AND r.kind = c.kind AND r.key = c.key)";

absl::StatusOr<int64_t> AskInteger(PGconn* connection, absl::string_view what, const char* sql) {
  ASSIGN_OR_RETURN(const PostgresResult result, RunPostgres(connection, what, sql));
  return PQntuples(result.get()) == 0 ? 0 : PostgresIntegerOf(result.get(), 0, 0);
}

// The steps are SQLite's, word for word: a domain gives BLOB its meaning here.
absl::Status MigratePostgres(PGconn* connection) {
  ASSIGN_OR_RETURN(const int64_t ours,
                   AskInteger(connection, "look for the schema",
                              "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
                              " AND tablename = 'schema_version'"));
  if (ours == 0) {
    RETURN_IF_ERROR(ExecutePostgres(connection,
                                    "BEGIN; CREATE DOMAIN blob AS bytea;"
                                    "CREATE TABLE schema_version (version BIGINT NOT NULL);"
                                    "INSERT INTO schema_version VALUES (0); COMMIT"));
  }
  ASSIGN_OR_RETURN(int64_t version, AskInteger(connection, "read the schema's version",
                                               "SELECT version FROM schema_version"));
  RETURN_IF_ERROR(CheckSchemaVersion(version, Migrations()));
  for (const Migration& step : Migrations()) {
    if (step.version <= version) continue;
    RETURN_IF_ERROR(ExecutePostgres(
        connection, absl::StrCat("BEGIN;", step.sql, "UPDATE schema_version SET version = ",
                                 step.version, "; COMMIT")));
    SPDLOG_INFO("store: schema version {} -> {}", version, step.version);
    version = step.version;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PostgresStore>> PostgresStore::Open(const std::string& url) {
  ASSIGN_OR_RETURN(PostgresConnection connection, ConnectPostgres(url));
  auto store = std::unique_ptr<PostgresStore>(new PostgresStore(std::move(connection)));
  RETURN_IF_ERROR(store->Begin());
  return store;
}

absl::Status PostgresStore::Begin() {
  PGconn* const connection = connection_.get();
  ASSIGN_OR_RETURN(const int64_t locked, AskInteger(connection, "lock the database", kLock));
  if (locked == 0) {
    return absl::FailedPreconditionError("another coordinator uses the database");
  }
  RETURN_IF_ERROR(MigratePostgres(connection));
  ASSIGN_OR_RETURN(epoch_,
                   AskInteger(connection, "begin an epoch",
                              "UPDATE coordinator SET value = value + 1 WHERE name = 'epoch'"
                              " RETURNING value::bigint"));
  if (epoch_ > 0) return absl::OkStatus();
  return absl::DataLossError("store: the database has no epoch");
}

absl::StatusOr<StoredState> PostgresStore::Load() {
  ASSIGN_OR_RETURN(const PostgresResult result,
                   RunPostgres(connection_.get(), "load",
                               "SELECT kind, key, value FROM records"
                               " ORDER BY kind COLLATE \"C\", key COLLATE \"C\""));
  StoredState state;
  const int count = PQntuples(result.get());
  state.rows.reserve(count);
  for (int row = 0; row < count; ++row) {
    const absl::string_view kind = PostgresBytes(result.get(), row, 0);
    const std::optional<Table> table = TableOf(kind);
    if (!table.has_value()) {
      return absl::DataLossError(absl::StrCat("store: records of unknown kind \"", kind, "\""));
    }
    state.rows.push_back({.table = *table,
                          .key = std::string(PostgresBytes(result.get(), row, 1)),
                          .value = std::string(PostgresBytes(result.get(), row, 2))});
  }
  return state;
}

absl::Status PostgresStore::Commit(absl::Span<const RowChange> rows) {
  if (rows.empty()) return absl::OkStatus();
  std::vector<absl::string_view> kinds;
  std::vector<absl::string_view> keys;
  std::vector<const std::string*> values;
  for (const RowChange& row : rows) {
    kinds.push_back(KindOf(row.table));
    keys.push_back(row.key);
    values.push_back(row.value.has_value() ? &*row.value : nullptr);
  }
  return RunFenced(connection_.get(), epoch_, "commit", kChanges,
                   {PostgresTexts(kinds), PostgresTexts(keys), PostgresBlobs(values)});
}

bool PostgresStore::RestoreReserve() {
  return RunPostgres(connection_.get(), "try to write",
                     "UPDATE coordinator SET value = value WHERE name = 'epoch' AND value = $1",
                     {PostgresInteger(epoch_)})
      .ok();
}

int64_t PostgresStore::SizeBytes() const {
  return AskInteger(connection_.get(), "ask for the size",
                    "SELECT pg_total_relation_size('records')")
      .value_or(0);
}

}  // namespace ringmaster::coordinator
