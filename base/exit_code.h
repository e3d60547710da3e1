#pragma once

#include "absl/status/status.h"

namespace ringmaster {

// How commands end that people and scripts run: ringctl's, and the worker's that ringctl becomes.
// Documented in README.md. The daemons have codes of their own, docs/operations.md: kExitUsage is
// the worker's, the 64 of <sysexits.h>. Here 2 is also what the coordinator refuses as invalid.
enum ExitCode {
  kExitOk = 0,
  kExitJobFailed = 1,  // the command worked; the job it waited for failed or was cancelled
  kExitInvalid = 2,    // a flag, a job file or a field is wrong
  kExitNotFound = 3,
  kExitUnavailable = 4,  // no answer in time
  kExitConflict = 5,     // the state forbids it: exists already, not terminal, changed meanwhile
  kExitInternal = 6,
  kExitDenied = 7,  // no token in force, or one that does not reach as far
};
ExitCode ExitCodeFor(absl::StatusCode code);

}  // namespace ringmaster
