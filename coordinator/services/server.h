#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/core/options.h"

namespace ringmaster::coordinator {

// PEM files; empty `certificate`: no TLS.
struct TlsFiles {
  std::string certificate;
  std::string key;
  // Set: clients must show a certificate of this authority.
  std::string client_ca;
};

struct ServerOptions {
  std::string data_directory;
  // Of jobs that name no directory. Empty: {data_directory}/jobs.
  std::string shared_directory;
  // "host:port"; port 0 takes a free one.
  std::string listen = "127.0.0.1:7077";
  // Empty: no HTTP.
  std::string http_listen = "127.0.0.1:7078";
  // The addresses are written here, gRPC and HTTP, one a line, once both listen.
  // {data_directory}/address always has them.
  std::string address_file;
  TlsFiles tls;
  // Allows addresses beyond loopback without TLS, and without tokens.
  bool insecure_i_understand = false;
  // Asks for tokens on loopback too; beyond it they are asked for unless `insecure_i_understand`.
  bool require_tokens = false;
  // Changes that may wait for a watcher that does not read.
  size_t watch_buffer = 1024;
  // A clock that never steps back. Empty: the machine's at the start, carried on by its steady one.
  std::function<absl::Time()> now;
  // `shared_directory` in it is replaced.
  CoreOptions core;
};

// The whole coordinator: store, event loop, gRPC services, HTTP endpoint. Thread-safe after
// Start().
class Server {
 public:
  // Listens and serves when it returns. Errors: InvalidArgument (an option), FailedPrecondition
  // (another coordinator has the data directory; not loopback without TLS), Unavailable (the port
  // is taken), and the store's.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);

  // Ends at once what Drain() has not ended; nothing that was promised is lost.
  virtual ~Server() = default;

  // "host:port" with the real ports.
  virtual const std::string& address() const = 0;
  virtual const std::string& http_address() const = 0;

  // Health says NOT_SERVING, mutations are refused, streams are ended, accepted calls are answered;
  // returns when all calls have ended, at most about a second later.
  virtual void Drain() = 0;
};

}  // namespace ringmaster::coordinator
