#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// What keeps a worker within its job's directory, whatever symbolic links somebody left there.
namespace ringmaster::worker {

// OK when a job may write in `directory`: it is an absolute path, and when `shared_directory` is
// not empty, it and the folders that a worker makes in it lie below that, all links followed.
// InvalidArgument or FailedPrecondition, naming the path; Unavailable when the file system does not
// tell.
absl::Status CheckJobDirectory(const std::string& directory, const std::string& shared_directory);

// Where `path` is when that is strictly below `folder`: links are followed, except a last name of
// `path` that is one, which is what unlink and O_NOFOLLOW are about. PermissionDenied when it is
// elsewhere, Unavailable when the file system does not tell.
absl::StatusOr<std::string> ResolveBelow(const std::string& folder, const std::string& path);

}  // namespace ringmaster::worker
