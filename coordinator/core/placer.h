#pragma once

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// Gives idle workers to jobs, all that a job needs or none, and says of the others why they wait: of
// those for whom no worker is left and who are far behind, within `explanation_interval`.
// Recovering jobs come first, but for workers whose rings were stopped for a higher one that still
// waits, by priority, then oldest first; then the queue in the order of fair_order.h. Workers that
// an earlier job could use are kept for it, so that it cannot starve; a job that no set of the
// present workers could ever run holds up nobody, and one that its queue's quota holds back nobody
// of another queue. Does nothing unless something changed.
void RunPlacer(State& state);

}  // namespace ringmaster::coordinator
