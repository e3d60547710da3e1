#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/store/postgres_session.h"
#include "coordinator/store/token_store.h"

namespace ringmaster::coordinator {

// Tokens in the PostgreSQL database, fenced as the core's rows are. A lost connection fails the
// call, not the ones after it; what it may have stored is a token whose text nobody was given, or
// what is asked for again.
class PostgresTokenStore : public TokenStore {
 public:
  // Of the coordinator's life `epoch`, whose store has made the tables. Errors: as
  // ConnectPostgres().
  static absl::StatusOr<std::unique_ptr<PostgresTokenStore>> Open(const std::string& url,
                                                                  int64_t epoch);

  absl::StatusOr<std::map<std::string, std::string>> Load() override;
  absl::Status Put(const std::string& key, const std::string& value) override;
  // The space is the server's; nothing of it can be set aside.
  absl::Status PutFromReserve(const std::string& key, const std::string& value) override {
    return Put(key, value);
  }
  absl::Status Erase(const std::string& key) override;

 private:
  PostgresTokenStore(std::string url, int64_t epoch) : session_(std::move(url)), epoch_(epoch) {}

  PostgresSession session_;
  const int64_t epoch_;
};

}  // namespace ringmaster::coordinator
