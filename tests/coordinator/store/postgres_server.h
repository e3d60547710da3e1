#pragma once

#include <sys/types.h>

#include <string>

#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {

// A PostgreSQL server of its own in a temporary folder, reached over a socket there, that ends with
// this object. As the server refuses to run as root, it runs as "postgres" then.
class PostgresServer {
 public:
  // Whether this host has one (initdb in PATH or where Debian puts it).
  static bool Installed();

  // One for all tests of the program, which ends with it; null where none is installed.
  static PostgresServer* Shared();

  PostgresServer();
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // Makes an empty database and returns its URL.
  std::string NewDatabase();
  // Ends all sessions of the database; they have given their locks back when it returns.
  static void EndSessions(const std::string& url);

 private:
  int Run(const std::string& command) const;

  const TemporaryDirectory folder_;
  int databases_ = 0;
};

}  // namespace ringmaster::coordinator
