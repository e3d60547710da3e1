#include "coordinator/store/postgres_session.h"

#include "base/status_macros.h"

namespace ringmaster::coordinator {

absl::StatusOr<PGconn*> PostgresSession::Connection() {
  if (PQstatus(connection_.get()) != CONNECTION_OK) {
    ASSIGN_OR_RETURN(connection_, ConnectPostgres(url_));
  }
  return connection_.get();
}

}  // namespace ringmaster::coordinator
