#include "tests/coordinator/store/postgres_server.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "coordinator/store/postgres.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

// Debian keeps the server's programs out of PATH.
constexpr char kPath[] =
    "PATH=\"$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1):$PATH\"; ";

}  // namespace

bool PostgresServer::Installed() {
  return std::system(absl::StrCat(kPath, "command -v initdb >/dev/null").c_str()) == 0;
}

PostgresServer* PostgresServer::Shared() {
  static const std::unique_ptr<PostgresServer> server =
      Installed() ? std::make_unique<PostgresServer>() : nullptr;
  return server.get();
}

PostgresServer::PostgresServer() {
  chmod(folder_.path().c_str(), 0777);
  EXPECT_EQ(Run(absl::StrCat("initdb -D ", folder_.path(), "/data -A trust -U postgres -N")), 0);
  EXPECT_EQ(Run(absl::StrCat("pg_ctl -w -D ", folder_.path(), "/data -l ", folder_.path(),
                             "/log -o \"-c listen_addresses= -k ", folder_.path(), "\" start")),
            0);
}

PostgresServer::~PostgresServer() {
  (void)Run(absl::StrCat("pg_ctl -w -m immediate -D ", folder_.path(), "/data stop"));
  // Another user's files.
  (void)Run(absl::StrCat("rm -rf ", folder_.path(), "/data ", folder_.path(), "/log"));
}

std::string PostgresServer::NewDatabase() {
  const std::string server = absl::StrCat("host=", folder_.path(), " user=postgres dbname=");
  const std::string name = absl::StrCat("test", ++databases_);
  auto connection = ConnectPostgres(server + "postgres");
  EXPECT_TRUE(connection.ok()) << connection.status();
  if (connection.ok()) {
    EXPECT_TRUE(ExecutePostgres(connection->get(), "CREATE DATABASE " + name).ok());
  }
  return server + name;
}

void PostgresServer::EndSessions(const std::string& url) {
  auto connection = ConnectPostgres(url);
  ASSERT_TRUE(connection.ok()) << connection.status();
  const absl::Status status =
      ExecutePostgres(connection->get(),
                      "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                      " WHERE datname = current_database() AND pid <> pg_backend_pid()");
  EXPECT_TRUE(status.ok()) << status;
}

int PostgresServer::Run(const std::string& command) const {
  const std::string line =
      absl::StrCat("cd ", folder_.path(), "; ", kPath, command, " >>output 2>&1 </dev/null");
  if (geteuid() != 0) return std::system(line.c_str());
  return std::system(absl::StrCat("su postgres -s /bin/sh -c '", line, "'").c_str());
}

}  // namespace ringmaster::coordinator
