#pragma once

#include <string>

#include "absl/status/status.h"

namespace ringmaster {

struct LoggingOptions {
  // trace, debug, info, warning, error or off.
  std::string level = "info";
  // One JSON object a line (time, level, program, message) instead of text.
  bool json = false;
  // Empty: standard error. Else appended to this file, rotated at 16 MiB, three files kept.
  std::string file;
};

// Sets spdlog's default logger for the process; call once, first thing in main(). Afterwards log with SPDLOG_INFO and
// its siblings, one line per change of state, never in a hot loop. InvalidArgument for an unknown level,
// Internal when the file cannot be opened.
absl::Status SetUpLogging(const std::string& program, const LoggingOptions& options);

}  // namespace ringmaster
