#pragma once

#include <ucs/type/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ringmaster::worker {

// What UCX says as a Status: `what` was tried. A peer that cannot be reached or is gone is
// Unavailable; a refused connection is FailedPrecondition, since only a rank of another generation
// is refused.
absl::Status UcxStatus(ucs_status_t status, absl::string_view what);

}  // namespace ringmaster::worker
