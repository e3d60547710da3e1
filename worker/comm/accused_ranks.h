#pragma once

#include <vector>

#include "absl/status/status.h"

// Which peers an error blames, beside its message, where that can be told.
namespace ringmaster::worker {

absl::Status Accuse(absl::Status error, const std::vector<int>& ranks);
std::vector<int> AccusedRanks(const absl::Status& error);

}  // namespace ringmaster::worker
