#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"

namespace ringmaster {

// Waits until `done`, at most for `patience` (which may be infinite); false when it passed. By the
// steady clock: Abseil's own waits (20220623) end when the wall clock says so, which may be set
// meanwhile.
template <typename Condition>
bool WaitFor(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
             absl::Duration patience, const Condition& done) {
  constexpr absl::Duration kNever = absl::Hours(24 * 365);  // the clock must not overflow
  return changed.wait_for(lock, absl::ToChronoNanoseconds(std::min(patience, kNever)), done);
}

}  // namespace ringmaster
