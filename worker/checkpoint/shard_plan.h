#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace ringmaster::worker {

struct TensorSize {
  std::string name;
  int64_t bytes = 0;
};

// Which rank writes which tensor of replicated state: the largest first, then by name, each to the
// rank with the fewest bytes so far (the lowest such rank). Element i is the rank of tensors[i]. A
// pure function, so that all ranks agree without a word. REQUIRES: ranks > 0.
std::vector<int> PlanShards(absl::Span<const TensorSize> tensors, int ranks);

}  // namespace ringmaster::worker
