#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace ringmaster::worker {

// Waits until `done`, at most for `deadline` (which may be infinite); false when it passed. The
// standard's mutex is used in this folder rather than Abseil's because ThreadSanitizer understands
// it without an instrumented Abseil.
template <typename Condition>
bool WaitFor(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
             absl::Duration deadline, const Condition& done) {
  constexpr absl::Duration kNever = absl::Hours(24 * 365);  // the clock must not overflow
  return changed.wait_for(lock, absl::ToChronoNanoseconds(std::min(deadline, kNever)), done);
}

}  // namespace ringmaster::worker
