#pragma once

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ringmaster {

// The time for deadlines and durations: the wall clock's when first asked, carried on by the steady
// clock, so that setting the machine's clock neither moves a deadline nor spoils a duration. The
// same in a process and in those that it forks later. Not for gRPC's deadlines, which are the wall
// clock's. Thread-safe.
inline absl::Time SteadyNow() {
  using Clock = std::chrono::steady_clock;
  struct Start {
    absl::Time wall = absl::Now();
    Clock::time_point steady = Clock::now();
  };
  static const Start start;
  return start.wall + absl::FromChrono(Clock::now() - start.steady);
}

}  // namespace ringmaster
