#include "base/daemon_main.h"

#include <sysexits.h>

#include <cstdlib>
#include <iostream>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/command_line.h"
#include "base/version.h"

namespace ringmaster {
namespace {

// The exit code of what only prints: a full disk behind a redirection must not look like success.
int Printed(const CLI::App& app) {
  if (std::cout.flush()) return EXIT_SUCCESS;
  std::cerr << app.get_name() << ": standard output cannot be written\n";
  return EX_IOERR;
}

}  // namespace

void AddDaemonFlags(CLI::App& app, DaemonFlags& flags, const std::string& libraries) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag(
      "--version", absl::StrCat(app.get_name(), " ", Version(), " (", Commit(), ") ", libraries));
  app.add_flag("--print-metrics", flags.print_metrics,
               "Print the table of all metrics as Markdown, and end");
  constexpr char kGroup[] = "Logging";
  app.add_option("--log-level", flags.logging.level, "trace, debug, info, warning, error or off")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--log-format", flags.log_format, "text, or json: one object a line")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--log-file", flags.logging.file,
                 "Log file, rotated at 16 MiB; empty: standard error")
      ->group(kGroup);
}

std::optional<int> ReadCommandLine(CLI::App& app, DaemonFlags& flags, int argc, char** argv,
                                   const std::function<std::string()>& metrics) {
  try {
    const std::vector<const char*> arguments = SplitEmptyValues(argc, argv);
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? Printed(app) : EX_USAGE;
  }
  if (flags.print_metrics) {
    std::cout << metrics();
    return Printed(app);
  }
  flags.logging.json = flags.log_format == "json";
  if (absl::Status status = SetUpLogging(app.get_name(), flags.logging); !status.ok()) {
    std::cerr << app.get_name() << ": " << status.message() << "\n";
    return EX_USAGE;
  }
  return std::nullopt;
}

}  // namespace ringmaster
