#pragma once

#include <memory>
#include <string>

#include "coordinator/store/postgres.h"
#include "coordinator/store/store.h"

namespace ringmaster::coordinator {

// The store in a PostgreSQL database (14 or later), with the schema of the embedded one. A commit
// is one statement, one round trip and one transaction, and is fenced: it does nothing unless the
// database's epoch is still this store's, so that no commit follows the opening of a later store,
// whatever clocks, pauses and connections do.
class PostgresStore : public Store {
 public:
  // Brings the schema up to date and begins the coordinator's next life (epoch + 1, durable).
  // Errors: FailedPrecondition (another coordinator is connected, or the database is newer than
  // this program), and ConnectPostgres() and RunPostgres() have the others.
  static absl::StatusOr<std::unique_ptr<PostgresStore>> Open(const std::string& url);

  // The number of this life; 1 in a new database.
  int64_t epoch() const { return epoch_; }

  absl::StatusOr<StoredState> Load() override;
  // FailedPrecondition, with which nobody can go on: a later coordinator has the database.
  absl::Status Commit(absl::Span<const RowChange> rows) override;

  // The space is the server's; nothing of it can be set aside.
  bool ReleaseReserve() override { return false; }
  bool HasReserve() const override { return true; }
  // Whether the server writes.
  bool RestoreReserve() override;

  // Of the records and their index; 0 when the server does not say.
  int64_t SizeBytes() const override;

 private:
  explicit PostgresStore(PostgresConnection connection) : connection_(std::move(connection)) {}

  absl::Status Begin();

  const PostgresConnection connection_;
  int64_t epoch_ = 0;
};

}  // namespace ringmaster::coordinator
