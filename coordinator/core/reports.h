#pragma once

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// Routes what a worker says. Every report renews the lease; what concerns a ring counts only from a
// member of the job's current generation, anything else is answered with ReleaseJob or, when the
// worker has heard of a newer generation already, with silence.
void OnReport(State& state, uint64_t stream, const v1::WorkerReport& report);

}  // namespace ringmaster::coordinator
