#pragma once

#include <cstdint>
#include <vector>

namespace ringmaster::attention {

// Dropout of the probabilities in one call of an operator: after the softmax, whose lse knows
// nothing of it, each probability is zeroed or divided by 1 - `probability`. Each branch decides by
// itself, equal ones too. A decision is a pure function of the sequence's seed, the call, the query
// head, the branch and the global tokens of query and key: the same in backward, on any number of
// ranks and in any batch. It takes word `key token mod 4` of Philox (kernels/philox.h, words of
// numbers low ones first)
//   of the counter (query token, key token / 4)
//   under the key in the first two words of Philox of the counter (call, head, branch) under the
//   seed,
// and drops where it is below floor(probability * 2^32).
struct AttentionDropout {
  double probability = 0;       // at least 0, below 1; 0: off, and the rest is not read
  std::vector<uint64_t> seeds;  // of each sequence of the batch
  int64_t first_head = 0;       // number of the call's first query head, where it has some of many
  uint64_t call = 0;            // tells calls with the same seeds apart, such as a model's layers

  bool on() const { return probability != 0; }
};

}  // namespace ringmaster::attention
