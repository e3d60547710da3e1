#pragma once

#include <optional>

#include "absl/status/status.h"

// Which peer an error of a transport blames, beside its message, where the transport can tell.
namespace ringmaster::worker {

absl::Status Accuse(absl::Status error, int rank);
std::optional<int> AccusedRank(const absl::Status& error);

}  // namespace ringmaster::worker
