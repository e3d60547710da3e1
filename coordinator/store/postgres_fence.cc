#include "coordinator/store/postgres_fence.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::coordinator {

absl::Status RunFenced(PGconn* connection, int64_t epoch, absl::string_view what,
                       absl::string_view changes, absl::Span<const PostgresValue> values) {
  // The epoch's row is locked first: who begins the next epoch waits for this transaction, and one
  // that waited for that finds the epoch changed and no leader.
  const std::string sql = absl::StrCat(
      "WITH leader AS (SELECT 1 FROM coordinator WHERE name = 'epoch' AND value = $1 FOR SHARE), ",
      changes, " SELECT count(*) FROM leader");
  std::vector<PostgresValue> all = {PostgresInteger(epoch)};
  all.insert(all.end(), values.begin(), values.end());
  ASSIGN_OR_RETURN(const PostgresResult result, RunPostgres(connection, what, sql.c_str(), all));
  if (PostgresIntegerOf(result.get(), 0, 0) == 1) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("store: a later coordinator has the database; epoch ", epoch, " is over"));
}

}  // namespace ringmaster::coordinator
