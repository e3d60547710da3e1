#pragma once

#include <functional>
#include <ostream>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/steady_now.h"

namespace ringmaster::cli {

// Time as RetryStream sees it.
struct RetryClock {
  std::function<absl::Time()> now = SteadyNow;
  std::function<void(absl::Duration)> pause = absl::SleepFor;
};

// Runs `connect`, which fails when it takes longer than a few seconds, and `read`, which reads a
// stream to its end and sets its argument once the coordinator answered. When it is gone, runs both
// again until a minute went by without it, however long an attempt lasts: how long a stream stood
// says nothing, since a proxy may have held it. A gap that lasts is told on `err` in one line.
// Returns what failed last.
absl::Status RetryStream(const std::function<absl::Status()>& connect,
                         const std::function<absl::Status(bool& answered)>& read, std::ostream& err,
                         const RetryClock& clock = {});

}  // namespace ringmaster::cli
