#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// The tiny exchange that ends Connect on host transports: every rank tells every other rank its
// generation and rank, and checks what it hears. FailedPrecondition when a peer belongs elsewhere;
// otherwise the exchange's errors.
absl::Status ProveRing(attention::GroupedExchange& world, const CommunicatorOptions& options,
                       absl::Span<const std::string> addresses);

}  // namespace ringmaster::worker
