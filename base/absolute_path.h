#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ringmaster {

// `path` from the root, without "." and ".." and spare slashes, the last one included, so that what
// is made of it has none. InvalidArgument when it is empty or there is no working directory.
absl::StatusOr<std::string> AbsolutePath(const std::string& path);

}  // namespace ringmaster
