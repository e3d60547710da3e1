#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ringmaster {

// All of a file. NotFound when it does not exist, else what the system says, naming the path; never
// throws, whatever `path` is and whatever becomes of its file system.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace ringmaster
