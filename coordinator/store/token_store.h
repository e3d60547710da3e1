#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringmaster::coordinator {

// The rows of access tokens, in the same database as the core's over a connection of its own: they
// are not the core's, and the event loop need not know of them. Used by one thread at a time.
class TokenStore {
 public:
  virtual ~TokenStore() = default;

  // By key.
  virtual absl::StatusOr<std::map<std::string, std::string>> Load() = 0;
  // Durable when it returns OK; as they were on an error that Store::Commit() calls usable.
  virtual absl::Status Put(const std::string& key, const std::string& value) = 0;
  // The same for what must not fail on a full disk: it may take the store's reserve.
  virtual absl::Status PutFromReserve(const std::string& key, const std::string& value) = 0;
  virtual absl::Status Erase(const std::string& key) = 0;
};

}  // namespace ringmaster::coordinator
