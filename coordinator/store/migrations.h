#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "sqlite3.h"

namespace ringmaster::coordinator {

// One step of the schema: the SQL that turns a database of version - 1 into one of `version`, in
// words that SQLite and PostgreSQL (where BLOB is a domain over bytea) understand.
struct Migration {
  int version = 0;
  const char* sql = nullptr;
};

// Every version there ever was, ascending from 1. A released entry is never edited: a change is a
// new entry.
absl::Span<const Migration> Migrations();

// FailedPrecondition when `version` is newer than the last of `migrations`.
absl::Status CheckSchemaVersion(int64_t version, absl::Span<const Migration> migrations);

// Brings `database` (version in PRAGMA user_version; 0 is an empty one) to the newest version, each
// step in one transaction with its version number. Errors: FailedPrecondition when the database is
// newer than this program or not a coordinator's, else as StatusFrom().
absl::Status Migrate(sqlite3* database, absl::Span<const Migration> migrations);

}  // namespace ringmaster::coordinator
