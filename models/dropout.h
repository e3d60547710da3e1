#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/types/span.h"

namespace ringmaster::models {

// The number from which a training sequence's dropout is drawn: a pure function of the job's seed,
// the step and the sequence's index among the step's sequences of all replicas.
uint64_t DropoutSeed(uint64_t job_seed, int64_t step, int64_t sequence);

// Dropout of one pass over B sequences. Which channel is dropped is a pure function of (the
// sequence's seed, place in the model, the token's global position, channel): the same for every
// ring size, micro-batch and device, in a block that is computed again, and in a step that is done
// again. Immutable value.
class Dropout {
 public:
  // Drops nothing.
  Dropout() = default;
  // `seeds` [B], one for each sequence; `positions` [n] int64, on the device. REQUIRES: 0 <=
  // probability < 1.
  Dropout(double probability, absl::Span<const uint64_t> seeds, const at::Tensor& positions);

  // x [B, n, channels] with each element zeroed with the probability, the others divided by 1 -
  // probability; differentiable, and its own transpose. `place` numbers the uses in a model.
  at::Tensor Apply(const at::Tensor& x, int64_t place) const;

 private:
  at::Tensor Kept(const at::Tensor& keys, int64_t channels) const;

  double probability_ = 0;
  at::Tensor keys_;  // [B, n] int64: a random number of each token; undefined: off
};

}  // namespace ringmaster::models
