#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/store/sqlite.h"
#include "coordinator/store/sqlite_store.h"
#include "coordinator/store/token_store.h"

namespace ringmaster::coordinator {

// Tokens in the embedded database.
class SqliteTokenStore : public TokenStore {
 public:
  // Errors: as SqliteStore::Open. `store` must outlive it.
  static absl::StatusOr<std::unique_ptr<SqliteTokenStore>> Open(SqliteStore& store);

  absl::StatusOr<std::map<std::string, std::string>> Load() override;
  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::Status PutFromReserve(const std::string& key, const std::string& value) override;
  absl::Status Erase(const std::string& key) override;

 private:
  SqliteTokenStore(Database database, SqliteStore* store)
      : database_(std::move(database)), store_(store) {}

  Database database_;
  SqliteStore* const store_;
};

}  // namespace ringmaster::coordinator
