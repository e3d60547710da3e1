#pragma once

#include "tests/worker/comm/rank_harness.h"

namespace ringmaster::worker {

// The memory of CUDA device 0, through the plugin; opened at the first use, and ends the process
// when it cannot be.
DeviceMemory CudaMemory();

}  // namespace ringmaster::worker
