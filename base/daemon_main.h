#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/logging.h"

namespace CLI {
class App;
}

namespace ringmaster {

// What the command lines of the daemons have in common.
struct DaemonFlags {
  LoggingOptions logging;
  std::string log_format = "text";
  bool print_metrics = false;
};

// Adds --version, which also prints `libraries` ("grpc/1.51.1", for reports of bugs),
// --print-metrics and --log-... Call it first: of the flags that are added later,
// too, the last of several counts, so that scripts can add to a command line.
void AddDaemonFlags(CLI::App& app, DaemonFlags& flags, const std::string& libraries);

// Parses the command line, and sets up logging. Returns the exit code when the program is to end: 0
// behind --help, --version and --print-metrics, which prints what `metrics` returns; 74 when that
// cannot be written, 64 when a flag is wrong, which it has told.
std::optional<int> ReadCommandLine(CLI::App& app, DaemonFlags& flags, int argc, char** argv,
                                   const std::function<std::string()>& metrics);

}  // namespace ringmaster
