#include "worker/checkpoint/job_directory.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<fs::path> Follow(const fs::path& path) {
  std::error_code error;
  fs::path followed = fs::weakly_canonical(path, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot follow ", path.string(), ": ", error.message()));
  }
  return followed;
}

}  // namespace

absl::StatusOr<std::string> ResolveBelow(const std::string& folder, const std::string& path) {
  ASSIGN_OR_RETURN(const fs::path root, Follow(folder));
  ASSIGN_OR_RETURN(const fs::path parent, Follow(fs::path(path).parent_path()));
  const fs::path resolved = (parent / fs::path(path).filename()).lexically_normal();
  const fs::path relative = resolved.lexically_relative(root);
  if (relative.empty() || relative == "." || *relative.begin() == "..") {
    return absl::PermissionDeniedError(
        absl::StrCat(path, " is not below ", folder, " when symbolic links are followed"));
  }
  return resolved.string();
}

absl::Status CheckJobDirectory(const std::string& directory, const std::string& shared_directory) {
  if (!absl::StartsWith(directory, "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the job's directory \"", directory, "\" is not an absolute path"));
  }
  if (shared_directory.empty()) {
    return absl::OkStatus();
  }
  for (const char* const folder : {"", "/checkpoints", "/logs", "/ring"}) {
    // A name in it, so that the folder itself is followed.
    const absl::Status status =
        ResolveBelow(shared_directory, absl::StrCat(directory, folder, "/name")).status();
    if (absl::IsPermissionDenied(status)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the job's directory ", directory, folder, " is not below this worker's --shared-dir ",
          shared_directory, " when symbolic links are followed"));
    }
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
