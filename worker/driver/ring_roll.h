#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ringmaster/v1/worker_service.pb.h"

// The proof that all ranks of a generation see the same job directory: each leaves a file that
// nobody else could have made (it is named by a random incarnation), and looks for everyone's.
// docs/files.md, "ring/".
namespace ringmaster::worker {

// Creates the job's directory if need be and this rank's file in it. The error names the path.
absl::Status SignRingRoll(const v1::FormRing& form, const std::string& incarnation);

// OK when the files of all ranks are there. Network file systems may show a new file late, hence
// `patience`; FailedPrecondition names the ranks that are missing, and accuses them. Cancelled soon
// after `cancelled` says so.
absl::Status CheckRingRoll(
    const v1::FormRing& form, absl::Duration patience,
    absl::FunctionRef<bool()> cancelled = [] { return false; });

// Removes this rank's file; rank 0 removes those of earlier generations too.
void LeaveRingRoll(const v1::FormRing& form, const std::string& incarnation);

}  // namespace ringmaster::worker
