#include "coordinator/store/postgres_token_store.h"

#include "base/status_macros.h"
#include "coordinator/store/postgres_fence.h"

namespace ringmaster::coordinator {

absl::StatusOr<std::unique_ptr<PostgresTokenStore>> PostgresTokenStore::Open(const std::string& url,
                                                                             int64_t epoch) {
  auto store = std::unique_ptr<PostgresTokenStore>(new PostgresTokenStore(url, epoch));
  RETURN_IF_ERROR(store->session_.Connection().status());
  return store;
}

absl::StatusOr<std::map<std::string, std::string>> PostgresTokenStore::Load() {
  ASSIGN_OR_RETURN(PGconn* const connection, session_.Connection());
  ASSIGN_OR_RETURN(const PostgresResult result,
                   RunPostgres(connection, "load tokens", "SELECT key, value FROM tokens"));
  std::map<std::string, std::string> rows;
  for (int row = 0; row < PQntuples(result.get()); ++row) {
    rows.emplace(PostgresBytes(result.get(), row, 0), PostgresBytes(result.get(), row, 1));
  }
  return rows;
}

absl::Status PostgresTokenStore::Put(const std::string& key, const std::string& value) {
  ASSIGN_OR_RETURN(PGconn* const connection, session_.Connection());
  return RunFenced(connection, epoch_, "write a token",
                   "written AS (INSERT INTO tokens SELECT key, value"
                   "  FROM leader, unnest($2, $3) AS c (key, value)"
                   "  ON CONFLICT (key) DO UPDATE SET value = excluded.value)",
                   {PostgresTexts({key}), PostgresBlobs({&value})});
}

absl::Status PostgresTokenStore::Erase(const std::string& key) {
  ASSIGN_OR_RETURN(PGconn* const connection, session_.Connection());
  return RunFenced(connection, epoch_, "write a token",
                   "erased AS (DELETE FROM tokens USING leader WHERE key = ANY ($2))",
                   {PostgresTexts({key})});
}

}  // namespace ringmaster::coordinator
