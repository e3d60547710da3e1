#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/violations.h"
#include "google/protobuf/field_mask.pb.h"
#include "google/protobuf/map.h"
#include "ringmaster/v1/job.pb.h"

// What users write on their jobs, and all of a job that they may change once it is created.
namespace ringmaster::coordinator {

using Labels = google::protobuf::Map<std::string, std::string>;

// The rules of TrainingJob.labels.
void CheckLabels(const Labels& labels, Violations* violations);

// UpdateTrainingJobRequest's rules: applies what `mask` names of `update` to `job`, or changes
// nothing and says everything that is wrong. Whether `job` is another one now.
absl::StatusOr<bool> UpdateLabels(const v1::TrainingJob& update,
                                  const google::protobuf::FieldMask& mask, v1::TrainingJob* job);

}  // namespace ringmaster::coordinator
