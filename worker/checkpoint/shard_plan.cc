#include "worker/checkpoint/shard_plan.h"

#include <algorithm>
#include <numeric>

namespace ringmaster::worker {

std::vector<int> PlanShards(absl::Span<const TensorSize> tensors, int ranks) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return tensors[a].bytes != tensors[b].bytes ? tensors[a].bytes > tensors[b].bytes
                                                : tensors[a].name < tensors[b].name;
  });
  std::vector<int64_t> load(static_cast<size_t>(ranks), 0);
  std::vector<int> rank_of(tensors.size(), 0);
  for (const size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += tensors[i].bytes;
    rank_of[i] = static_cast<int>(least - load.begin());
  }
  return rank_of;
}

}  // namespace ringmaster::worker
