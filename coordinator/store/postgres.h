#pragma once

#include <libpq-fe.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ringmaster::coordinator {

struct CloseConnection {
  void operator()(PGconn* connection) const { PQfinish(connection); }
};
struct ClearResult {
  void operator()(PGresult* result) const { PQclear(result); }
};
using PostgresConnection = std::unique_ptr<PGconn, CloseConnection>;
using PostgresResult = std::unique_ptr<PGresult, ClearResult>;

// One value of a statement, in PostgreSQL's binary format, of the type with this number.
struct PostgresValue {
  Oid type = 0;
  std::string bytes;
};
PostgresValue PostgresInteger(int64_t value);
// Nullptr stands for NULL.
PostgresValue PostgresTexts(absl::Span<const absl::string_view> values);
PostgresValue PostgresBlobs(absl::Span<const std::string* const> values);

// Connects to `url`, postgresql://host/database or libpq's key=value form. What it does not say is
// taken from libpq's own environment and files. A server that stops answering fails a statement
// within 15 seconds. Errors: InvalidArgument (not a URL, or one with a password in it, which others
// could see in the list of processes), Internal.
absl::StatusOr<PostgresConnection> ConnectPostgres(const std::string& url);

// Runs one statement with its values in a transaction of its own; results are binary. Errors that
// leave nothing of it behind: ResourceExhausted (no space), Unavailable (a conflict with others, a
// lock not granted in time, a database that is read-only for now). DataLoss when the database is
// damaged. All else is Internal, also a connection that was lost: nobody knows whether the
// statement was committed.
absl::StatusOr<PostgresResult> RunPostgres(PGconn* connection, absl::string_view what,
                                           const char* sql,
                                           absl::Span<const PostgresValue> values = {});

// Runs statements without values or results, in one transaction unless they say otherwise.
absl::Status ExecutePostgres(PGconn* connection, const std::string& sql);

// Bytes of a row's column; NULL is empty.
absl::string_view PostgresBytes(const PGresult* result, int row, int column);

// A column of type bigint. REQUIRES: such a row and column.
int64_t PostgresIntegerOf(const PGresult* result, int row, int column);

}  // namespace ringmaster::coordinator
