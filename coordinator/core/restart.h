#pragma once

#include "absl/status/status.h"
#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// Fills an empty memory from the store and adopts the rings found there: their members count as
// alive for the adoption window, and training goes on meanwhile. DataLoss for a row that does not
// parse.
absl::Status LoadStored(State& state, const StoredState& stored);

}  // namespace ringmaster::coordinator
