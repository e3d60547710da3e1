#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/store/data_directory.h"
#include "coordinator/store/sqlite.h"
#include "coordinator/store/store.h"

namespace ringmaster::coordinator {

struct SqliteStoreOptions {
  // The database's file and the reserve are in it; its lock outlives the database.
  std::shared_ptr<DataDirectory> directory;
  int64_t reserve_bytes = 8 << 20;
  // How long a commit waits for another program's lock: a person with a database shell.
  absl::Duration busy_timeout = absl::Milliseconds(500);
  // Name of a registered SQLite VFS; empty: the default. Tests put a faulty disk here.
  std::string vfs;
};

// The embedded store: one SQLite database in WAL mode with synchronous=FULL, so that a commit is on
// the disk when it returns.
class SqliteStore : public Store {
 public:
  // Brings the schema up to date and begins the coordinator's next life (epoch + 1, durable).
  // Errors: FailedPrecondition (the database is newer than this program), ResourceExhausted (no
  // space), DataLoss, Internal.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const SqliteStoreOptions& options);

  // The number of this life; 1 in a new directory.
  int64_t epoch() const { return epoch_; }

  // Another connection to the same database, as durable, for what is not the core's. Who writes
  // over it holds Writing() meanwhile.
  absl::StatusOr<Database> Connect() const;
  // One writer at a time: a second one would wait for no longer than `busy_timeout`, and the event
  // loop take its failure for that of the disk.
  std::unique_lock<std::mutex> Writing() { return std::unique_lock(writing_); }

  absl::StatusOr<StoredState> Load() override;
  absl::Status Commit(absl::Span<const RowChange> rows) override;
  bool ReleaseReserve() override { return options_.directory->ReleaseReserve(); }
  bool HasReserve() const override { return options_.directory->HasReserve(); }
  // The reserve's own room is not enough: the next commit would find the disk full again.
  bool RestoreReserve() override {
    return options_.directory->Reserve(options_.reserve_bytes, options_.reserve_bytes).ok();
  }
  int64_t SizeBytes() const override;

 private:
  explicit SqliteStore(SqliteStoreOptions options) : options_(std::move(options)) {}

  absl::Status Begin();
  absl::Status Apply(const RowChange& row);

  const SqliteStoreOptions options_;
  int64_t epoch_ = 0;
  std::mutex writing_;
  Database database_;
  Statement upsert_;
  Statement erase_;
};

}  // namespace ringmaster::coordinator
