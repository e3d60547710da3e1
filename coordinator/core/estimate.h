#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// What a job would need: sums of formulas over its shapes, no measurement. An unset precision
// counts as FP32. Takes at most about a second; what that is too short for is left out, with a
// warning that says so. Needs nothing but its argument, and so need not run on the event loop's
// thread, which it would hold up.
absl::StatusOr<v1::EstimateTrainingJobResponse> EstimateJob(
    const v1::EstimateTrainingJobRequest& request);

// Trainable numbers of the model.
int64_t ParameterCount(const v1::ModelSpec& model);

// Parameters, gradients and optimizer state: what every rank must hold whatever its tokens are.
int64_t StateBytes(const v1::TrainingJobSpec& spec);

}  // namespace ringmaster::coordinator
