#pragma once

#include <cstdint>

#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster {

// What a worker says that it holds of a job after `step` steps.
inline v1::HeldState HeldAt(int64_t step, uint64_t digest, bool clean) {
  v1::HeldState held;
  held.set_present(true);
  held.set_step(step);
  held.set_clean(clean);
  held.set_digest(digest);
  return held;
}

}  // namespace ringmaster
