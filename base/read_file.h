#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ringmaster {

// All of a file that the user names. InvalidArgument, with the reason, when it cannot be read.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace ringmaster
