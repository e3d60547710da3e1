#pragma once

#include "coordinator/core/core.h"
#include "coordinator/metrics/metrics.h"

namespace ringmaster::coordinator {

// Turns what the core says about itself into metrics. Lives on the event loop's thread.
class CoreMetrics {
 public:
  // Gauges are set, counters raised by what was added since the last call.
  void Publish(const CoreSnapshot& snapshot, Metrics& metrics);

  // What a committed output says has just ended.
  static void Observe(const Output& output, Metrics& metrics);

 private:
  CoreCounters published_;
};

}  // namespace ringmaster::coordinator
