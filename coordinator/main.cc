// ringmaster-coordinator: accepts jobs, places them on workers, brings rings back.
// docs/operations.md has the flags.
#include <pthread.h>
#include <signal.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/daemon_main.h"
#include "base/version.h"
#include "coordinator/metrics/metric_table.h"
#include "coordinator/services/server.h"
#include "grpcpp/grpcpp.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

// A container may run as a user without a home.
std::string DefaultDataDirectory() {
  const char* const home = std::getenv("HOME");
  return absl::StrCat(home != nullptr && *home != '\0' ? home : "/var/lib",
                      "/.local/share/ringmaster");
}

void AddFlags(CLI::App& app, ServerOptions& server) {
  server.data_directory = DefaultDataDirectory();
  app.add_option("--data-dir", server.data_directory, "Database; one coordinator at a time")
      ->capture_default_str();
  app.add_option(
      "--shared-dir", server.shared_directory,
      "Directory of the jobs' directories, at the same path on every worker; empty: DATA_DIR/jobs");
  app.add_option("--listen", server.listen, "gRPC address, HOST:PORT; port 0 takes a free one")
      ->capture_default_str();
  app.add_option("--http-listen", server.http_listen,
                 "Address of /metrics, /healthz, /readyz and the status page, with tokens and TLS "
                 "as --listen; "
                 "empty: none")
      ->capture_default_str();
  app.add_option("--address-file", server.address_file,
                 "File for the two addresses, one a line, written once both listen");
  app.add_option("--tls-cert", server.tls.certificate, "PEM file with the certificate chain");
  app.add_option("--tls-key", server.tls.key, "PEM file with the key of --tls-cert");
  app.add_option("--tls-client-ca", server.tls.client_ca,
                 "PEM file of the authority whose certificates clients and workers must show");
  app.add_flag(
      "--insecure-i-understand", server.insecure_i_understand,
      "Listen beyond loopback without TLS or tokens: everyone who reaches the port may use the "
      "service");
  app.add_flag("--require-tokens", server.require_tokens,
               "Ask callers for tokens on loopback too; DATA_DIR/admin-token has the first");
  app.add_flag("--preemption", server.core.preemption,
               "Stop running jobs, at a checkpoint, for waiting ones of a higher priority");
  app.add_option_function<int64_t>(
         "--preemption-min-runtime",
         [&server](int64_t seconds) {
           server.core.preemption_min_runtime = absl::Seconds(seconds);
         },
         "Seconds that a job has run for, since it was placed, before it is stopped for another")
      ->check(CLI::NonNegativeNumber)
      ->default_str("60");
}

int Serve(const ServerOptions& options) {
  // Blocked before any thread exists, so that only sigwait() below gets them.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) {
    std::cerr << "ringmaster-coordinator: " << server.status().message() << "\n";
    return EXIT_FAILURE;
  }
  SPDLOG_INFO("version {} ({}) serves at {}, HTTP at {}", Version(), Commit(), (*server)->address(),
              (*server)->http_address());
  int number = 0;
  sigwait(&ends, &number);
  SPDLOG_INFO("signal {}: draining", number);
  (*server)->Drain();
  SPDLOG_INFO("drained");
  return EXIT_SUCCESS;
}

int Main(int argc, char** argv) {
  CLI::App app("Ringmaster's coordinator: jobs, rings, recovery", "ringmaster-coordinator");
  DaemonFlags daemon;
  ServerOptions server;
  AddDaemonFlags(app, daemon, absl::StrCat("grpc/", grpc::Version()));
  AddFlags(app, server);
  if (const auto code = ReadCommandLine(app, daemon, argc, argv, MetricTableMarkdown)) {
    return *code;
  }
  return Serve(server);
}

}  // namespace
}  // namespace ringmaster::coordinator

int main(int argc, char** argv) { return ringmaster::coordinator::Main(argc, argv); }
