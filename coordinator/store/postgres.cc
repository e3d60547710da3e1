#include "coordinator/store/postgres.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

// From the server's catalogue, where they never change.
constexpr Oid kBigint = 20;
constexpr Oid kText = 25;
constexpr Oid kTextArray = 1009;
constexpr Oid kBytea = 17;
constexpr Oid kByteaArray = 1001;

// A person's lock on a row must not stop the event loop; a server that lost the coordinator's host
// must give its lock back; and "committed" means on the disk.
constexpr char kSession[] =
    "SET lock_timeout = '500ms'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5;"
    "SET tcp_keepalives_count = 2;"
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'";

template <typename T>
void AppendBigEndian(std::string& bytes, T value) {
  for (int shift = 8 * (sizeof(T) - 1); shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(value) >> shift));
  }
}

// One dimension, whether there are NULLs (the server looks for itself), the type, count, first
// index.
std::string ArrayHeader(Oid element, size_t count) {
  std::string bytes;
  for (const int32_t word : {1, 1, static_cast<int32_t>(element), static_cast<int32_t>(count), 1}) {
    AppendBigEndian(bytes, word);
  }
  return bytes;
}

void AppendElement(std::string& bytes, absl::string_view element) {
  AppendBigEndian(bytes, static_cast<int32_t>(element.size()));
  bytes.append(element.data(), element.size());
}

// By the server's own number of the error (SQLSTATE; PostgreSQL's appendix A).
absl::StatusCode CodeFor(PGconn* connection, absl::string_view state) {
  // Whether it was committed nobody knows, whatever was said last.
  if (PQstatus(connection) != CONNECTION_OK) return absl::StatusCode::kInternal;
  if (state == "53100") return absl::StatusCode::kResourceExhausted;
  for (const absl::string_view passes : {"40001",     // Not serializable.
                                         "40P01",     // Deadlock.
                                         "55P03",     // Lock not granted in time.
                                         "57014",     // Cancelled, or took too long.
                                         "25006",     // Read-only.
                                         "53200"}) {  // The server's memory.
    if (state == passes) return absl::StatusCode::kUnavailable;
  }
  // Damaged data or index.
  if (state == "XX001" || state == "XX002") return absl::StatusCode::kDataLoss;
  return absl::StatusCode::kInternal;
}

absl::Status StatusFrom(PGconn* connection, const PGresult* result, absl::string_view what) {
  const ExecStatusType got = PQresultStatus(result);
  if (got == PGRES_COMMAND_OK || got == PGRES_TUPLES_OK) return absl::OkStatus();
  const char* const field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  const absl::string_view state = field != nullptr ? field : "";
  // Not the server's detail, which may show a row.
  const char* const primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
  const absl::string_view message =
      primary != nullptr ? primary : absl::StripAsciiWhitespace(PQerrorMessage(connection));
  return absl::Status(CodeFor(connection, state),
                      absl::StrCat("store: ", what, ": ", message, " (PostgreSQL ", state, ")"));
}

absl::Status CheckUrl(const std::string& url) {
  char* error = nullptr;
  PQconninfoOption* const options = PQconninfoParse(url.c_str(), &error);
  if (options == nullptr) {
    // Libpq's message may hold the password.
    PQfreemem(error);
    return absl::InvalidArgumentError(
        "the database is no connection URL: write postgresql://USER@HOST:PORT/DATABASE");
  }
  bool secret = false;
  for (const PQconninfoOption* option = options; option->keyword != nullptr; ++option) {
    const absl::string_view name = option->keyword;
    secret |= option->val != nullptr && (name == "password" || name == "sslpassword");
  }
  PQconninfoFree(options);
  if (!secret) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "the database's URL holds a password, which everybody on this host could read: put it into "
      "~/.pgpass, or a file that PGPASSFILE names, or use a client certificate");
}

}  // namespace

PostgresValue PostgresInteger(int64_t value) {
  PostgresValue result = {.type = kBigint};
  AppendBigEndian(result.bytes, value);
  return result;
}

PostgresValue PostgresTexts(absl::Span<const absl::string_view> values) {
  PostgresValue result = {.type = kTextArray, .bytes = ArrayHeader(kText, values.size())};
  for (const absl::string_view value : values) AppendElement(result.bytes, value);
  return result;
}

PostgresValue PostgresBlobs(absl::Span<const std::string* const> values) {
  PostgresValue result = {.type = kByteaArray, .bytes = ArrayHeader(kBytea, values.size())};
  for (const std::string* value : values) {
    if (value != nullptr) {
      AppendElement(result.bytes, *value);
    } else {
      AppendBigEndian(result.bytes, int32_t{-1});
    }
  }
  return result;
}

absl::StatusOr<PostgresConnection> ConnectPostgres(const std::string& url) {
  RETURN_IF_ERROR(CheckUrl(url));
  // What the URL says too wins over what stands before it.
  const char* const names[] = {"application_name",
                               "connect_timeout",
                               "keepalives_idle",
                               "keepalives_interval",
                               "keepalives_count",
                               "tcp_user_timeout",
                               "dbname",
                               "client_encoding",
                               nullptr};
  const char* const values[] = {
      "ringmaster-coordinator", "10", "5", "5", "2", "15000", url.c_str(), "UTF8", nullptr};
  PostgresConnection connection(PQconnectdbParams(names, values, /*expand_dbname=*/1));
  if (PQstatus(connection.get()) != CONNECTION_OK) {
    return absl::InternalError(
        absl::StrCat("store: connect to the database: ",
                     absl::StripAsciiWhitespace(PQerrorMessage(connection.get()))));
  }
  RETURN_IF_ERROR(ExecutePostgres(connection.get(), kSession));
  return connection;
}

absl::StatusOr<PostgresResult> RunPostgres(PGconn* connection, absl::string_view what,
                                           const char* sql,
                                           absl::Span<const PostgresValue> values) {
  std::vector<Oid> types;
  std::vector<const char*> bytes;
  std::vector<int> sizes;
  for (const PostgresValue& value : values) {
    types.push_back(value.type);
    bytes.push_back(value.bytes.data());
    sizes.push_back(static_cast<int>(value.bytes.size()));
  }
  const std::vector<int> formats(values.size(), 1);
  PostgresResult result(PQexecParams(connection, sql, static_cast<int>(values.size()), types.data(),
                                     bytes.data(), sizes.data(), formats.data(), 1));
  RETURN_IF_ERROR(StatusFrom(connection, result.get(), what));
  return result;
}

absl::Status ExecutePostgres(PGconn* connection, const std::string& sql) {
  const PostgresResult result(PQexec(connection, sql.c_str()));
  return StatusFrom(connection, result.get(), sql.substr(0, 60));
}

absl::string_view PostgresBytes(const PGresult* result, int row, int column) {
  return {PQgetvalue(result, row, column), static_cast<size_t>(PQgetlength(result, row, column))};
}

int64_t PostgresIntegerOf(const PGresult* result, int row, int column) {
  uint64_t value = 0;
  for (const char byte : PostgresBytes(result, row, column)) {
    value = value << 8 | static_cast<uint8_t>(byte);
  }
  return static_cast<int64_t>(value);
}

}  // namespace ringmaster::coordinator
