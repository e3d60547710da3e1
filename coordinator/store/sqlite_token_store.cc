#include "coordinator/store/sqlite_token_store.h"

#include <utility>

#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

// Nothing is said here of values: a row's is half of a secret.
absl::Status Step(sqlite3* database, sqlite3_stmt* statement, const std::string& key) {
  sqlite3_bind_text64(statement, 1, key.data(), key.size(), SQLITE_STATIC, SQLITE_UTF8);
  const int code = sqlite3_step(statement);
  return code == SQLITE_DONE ? absl::OkStatus() : StatusFrom(database, code, "write a token");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteTokenStore>> SqliteTokenStore::Open(SqliteStore& store) {
  ASSIGN_OR_RETURN(Database database, store.Connect());
  return std::unique_ptr<SqliteTokenStore>(new SqliteTokenStore(std::move(database), &store));
}

absl::StatusOr<std::map<std::string, std::string>> SqliteTokenStore::Load() {
  std::map<std::string, std::string> rows;
  ASSIGN_OR_RETURN(const Statement select,
                   Prepare(database_.get(), "SELECT key, value FROM tokens"));
  const auto bytes = [&](int column) {
    const void* data = sqlite3_column_blob(select.get(), column);
    return std::string(static_cast<const char*>(data), sqlite3_column_bytes(select.get(), column));
  };
  for (;;) {
    const int code = sqlite3_step(select.get());
    if (code == SQLITE_DONE) return rows;
    if (code != SQLITE_ROW) return StatusFrom(database_.get(), code, "load tokens");
    rows.emplace(bytes(0), bytes(1));
  }
}

absl::Status SqliteTokenStore::Put(const std::string& key, const std::string& value) {
  const auto writing = store_->Writing();
  ASSIGN_OR_RETURN(const Statement upsert, Prepare(database_.get(),
                                                   "INSERT INTO tokens (key, value) VALUES (?1, ?2)"
                                                   " ON CONFLICT (key) DO UPDATE SET value = ?2"));
  sqlite3_bind_blob64(upsert.get(), 2, value.data(), value.size(), SQLITE_STATIC);
  return Step(database_.get(), upsert.get(), key);
}

absl::Status SqliteTokenStore::PutFromReserve(const std::string& key, const std::string& value) {
  const absl::Status status = Put(key, value);
  if (!absl::IsResourceExhausted(status) || !store_->ReleaseReserve()) return status;
  // The event loop finds that the reserve is gone and sets it aside again when there is room.
  return Put(key, value);
}

absl::Status SqliteTokenStore::Erase(const std::string& key) {
  const auto writing = store_->Writing();
  ASSIGN_OR_RETURN(const Statement erase,
                   Prepare(database_.get(), "DELETE FROM tokens WHERE key = ?1"));
  return Step(database_.get(), erase.get(), key);
}

}  // namespace ringmaster::coordinator
