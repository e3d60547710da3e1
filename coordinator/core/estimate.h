#pragma once

#include <cstdint>

#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// What a job would need: sums of formulas over its shapes, no measurement. An unset precision
// counts as FP32. REQUIRES: `spec` is resolved and valid.
v1::EstimateTrainingJobResponse Estimate(const v1::TrainingJobSpec& spec);

// Trainable numbers of the model.
int64_t ParameterCount(const v1::ModelSpec& model);

// Parameters, gradients and optimizer state: what every rank must hold whatever its tokens are.
int64_t StateBytes(const v1::TrainingJobSpec& spec);

}  // namespace ringmaster::coordinator
