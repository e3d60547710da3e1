#include "base/absolute_path.h"

#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ringmaster {

absl::StatusOr<std::string> AbsolutePath(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error).lexically_normal();
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", path, "\" is no path that can be made absolute: ", error.message()));
  }
  return (absolute.has_filename() ? absolute : absolute.parent_path()).string();
}

}  // namespace ringmaster
