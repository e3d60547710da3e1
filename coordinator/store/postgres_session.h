#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/postgres.h"

namespace ringmaster::coordinator {

// A connection that is made again when it was lost, for statements that may be repeated: what was
// under way when it broke fails, and may have been committed. For one thread at a time.
class PostgresSession {
 public:
  explicit PostgresSession(std::string url) : url_(std::move(url)) {}

  // For the next statement. Errors: as ConnectPostgres().
  absl::StatusOr<PGconn*> Connection();

 private:
  const std::string url_;
  PostgresConnection connection_;
};

}  // namespace ringmaster::coordinator
