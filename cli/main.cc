// ringctl: the command line of a Ringmaster coordinator.

#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/command_line.h"
#include "base/exit_code.h"
#include "base/version.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/nearest_name.h"
#include "cli/output.h"
#include "grpcpp/grpcpp.h"

namespace {

using ringmaster::cli::CommandContext;

void AddGlobalOptions(CLI::App& app, CommandContext& context, std::string& output,
                      double& timeout_seconds) {
  auto& options = context.options;
  app.add_option("--address", options.address, "Coordinator, host:port or unix:PATH")
      ->envname("RINGMASTER_ADDRESS")
      ->capture_default_str();
  app.add_option("--project", options.project, "Project of jobs given by their id alone")
      ->envname("RINGMASTER_PROJECT")
      ->capture_default_str();
  app.add_option("--tls-ca", options.tls_ca, "PEM file: connect by TLS, trusting this authority")
      ->envname("RINGMASTER_TLS_CA");
  app.add_option("--tls-cert", options.tls_cert, "PEM file: client certificate")
      ->envname("RINGMASTER_TLS_CERT");
  app.add_option("--tls-key", options.tls_key, "PEM file: client key")
      ->envname("RINGMASTER_TLS_KEY");
  app.add_option("--token-file", options.token_file,
                 "File with the token to show; RINGMASTER_TOKEN may hold it instead")
      ->envname("RINGMASTER_TOKEN_FILE");
  app.add_option("--timeout", timeout_seconds, "Seconds to wait for a reply")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("-o,--output", output, "table, json, yaml or name")->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  CommandContext context;
  context.out = &std::cout;
  context.err = &std::cerr;
  context.terminal = isatty(STDOUT_FILENO) != 0;

  CLI::App app("Submits training jobs to a Ringmaster coordinator, and watches them.", "ringctl");
  app.require_subcommand(1);
  app.fallthrough();
  const std::string version = absl::StrCat("ringctl ", ringmaster::Version(), " (",
                                           ringmaster::Commit(), ") grpc/", grpc::Version());
  app.set_version_flag("--version", version);
  std::string output = "table";
  double timeout_seconds = 10;
  AddGlobalOptions(app, context, output, timeout_seconds);
  app.parse_complete_callback([&] {
    context.options.timeout = absl::Seconds(timeout_seconds);
    const auto format = ringmaster::cli::ParseOutputFormat(output);
    if (!format.ok()) {
      throw CLI::ValidationError(std::string(format.status().message()));
    }
    context.options.output = *format;
  });

  ringmaster::cli::AddJobCommands(app, context);
  ringmaster::cli::AddLabelCommand(app, context);
  ringmaster::cli::AddPriorityCommand(app, context);
  ringmaster::cli::AddWatchCommand(app, context);
  ringmaster::cli::AddTopCommand(app, context);
  ringmaster::cli::AddRecordCommands(app, context);
  ringmaster::cli::AddClusterCommands(app, context);
  ringmaster::cli::AddCheckpointCommands(app, context);
  ringmaster::cli::AddQueueCommands(app, context);
  ringmaster::cli::AddTokenCommands(app, context);
  ringmaster::cli::AddExplainCommand(app, context);
  ringmaster::cli::AddCompletionCommand(app, context);
  app.add_subcommand("version", "Print the version")->callback([&] {
    std::cout << version << "\n";
  });

  try {
    const std::vector<const char*> arguments = ringmaster::SplitEmptyValues(argc, argv);
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::ParseError& error) {
    // The innermost command that was recognised; what it leaves may be a misspelt subcommand of it.
    const CLI::App* last = &app;
    while (!last->get_subcommands().empty()) last = last->get_subcommands().front();
    std::vector<std::string> verbs;
    for (const CLI::App* command : last->get_subcommands(nullptr)) {
      verbs.push_back(command->get_name());
    }
    const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
    if (error.get_exit_code() != 0 && !verbs.empty() && !unknown.empty()) {
      std::cerr << "error: unknown command \"" << unknown.front() << "\""
                << ringmaster::cli::DidYouMean(unknown.front(), verbs) << "; see ringctl --help\n";
      return ringmaster::kExitInvalid;
    }
    // 0: it printed --help or --version.
    if (app.exit(error, std::cout, std::cerr) != 0) return ringmaster::kExitInvalid;
  }
  // A full disk behind a redirection must not look like success.
  if (!std::cout.flush() && context.exit_code == ringmaster::kExitOk) {
    std::cerr << "error: standard output cannot be written\n";
    return ringmaster::kExitInternal;
  }
  return context.exit_code;
}
