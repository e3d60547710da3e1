#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/sqlite.h"
#include "coordinator/store/sqlite_store.h"

namespace ringmaster::coordinator {

// The rows of access tokens, in the same database over a connection of its own: they are not the
// core's, and the event loop need not know of them. Used by one thread at a time.
class TokenStore {
 public:
  // Errors: as SqliteStore::Open. `store` must outlive it.
  static absl::StatusOr<std::unique_ptr<TokenStore>> Open(SqliteStore& store);

  // By key.
  absl::StatusOr<std::map<std::string, std::string>> Load();
  // Durable when it returns OK; as they were on an error. Errors: as Store::Commit.
  absl::Status Put(const std::string& key, const std::string& value);
  // The same for what must not fail on a full disk: it may take the store's reserve.
  absl::Status PutFromReserve(const std::string& key, const std::string& value);
  absl::Status Erase(const std::string& key);

 private:
  TokenStore(Database database, SqliteStore* store)
      : database_(std::move(database)), store_(store) {}

  Database database_;
  SqliteStore* const store_;
};

}  // namespace ringmaster::coordinator
