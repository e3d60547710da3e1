#pragma once

#include <ATen/core/Tensor.h>

#include "worker/train/fault_injection.h"
#include "worker/train/job_config.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// The 2-norm of flat `gradients`, summed in fp64, and its copy's memory: a piece at a time. Equal
// bits on equal devices. Waits for the device; throws c10::Error.
double GradientNorm(const at::Tensor& gradients);

// One AdamW update of `state`, from step() to step() + 1; the state is dirty meanwhile.
//   gradients  flat, as state.parameters(); scaled in place to the norm config.clip_norm when
//              grad_norm, their global norm, is larger
// Element by element, so that ranks with equal inputs get equal bits. Throws c10::Error. `fault`
// may strike at "update", between two writes.
void ApplyAdamW(const OptimizerConfig& config, double learning_rate, double grad_norm,
                const at::Tensor& gradients, const FaultPoint& fault, TrainingState& state);

}  // namespace ringmaster::worker
