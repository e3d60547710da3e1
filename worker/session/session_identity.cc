#include "worker/session/session_identity.h"

#include "absl/strings/str_cat.h"

namespace ringmaster::worker {

absl::Status SessionIdentity::Validate() const {
  if (worker.rfind("workers/", 0) != 0 || worker.size() == std::string("workers/").size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("worker name '", worker, "' must look like workers/{id}"));
  }
  if (incarnation.size() != 32) {
    return absl::InvalidArgumentError(
        absl::StrCat("incarnation '", incarnation, "' must be 32 hexadecimal digits"));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster::worker
