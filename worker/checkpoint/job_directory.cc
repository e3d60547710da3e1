#include "worker/checkpoint/job_directory.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;

}  // namespace

std::string ResolveBelow(const std::string& folder, const std::string& path) {
  std::error_code error;
  const fs::path root = fs::weakly_canonical(folder, error);
  if (error) {
    return std::string();
  }
  const fs::path parent = fs::weakly_canonical(fs::path(path).parent_path(), error);
  if (error) {
    return std::string();
  }
  const fs::path resolved = (parent / fs::path(path).filename()).lexically_normal();
  const fs::path relative = resolved.lexically_relative(root);
  if (relative.empty() || relative == "." || *relative.begin() == "..") {
    return std::string();
  }
  return resolved.string();
}

absl::Status CheckJobDirectory(const std::string& directory, const std::string& shared_directory) {
  if (!absl::StartsWith(directory, "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the job's directory \"", directory, "\" is not an absolute path"));
  }
  for (const char* const folder : {"", "/checkpoints", "/logs", "/ring"}) {
    // A name in it, so that the folder itself is followed.
    if (!shared_directory.empty() &&
        ResolveBelow(shared_directory, absl::StrCat(directory, folder, "/name")).empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the job's directory ", directory, folder, " is not below this worker's --shared-dir ",
          shared_directory, " when symbolic links are followed"));
    }
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
