#pragma once

#include "absl/status/statusor.h"
#include "google/protobuf/field_mask.pb.h"
#include "ringmaster/v1/job.pb.h"
#include "ringmaster/v1/queue_service.pb.h"

// All of a job that users may change once it is created: its labels and its priority.
namespace ringmaster::coordinator {

// UpdateTrainingJobRequest's rules: applies what `mask` names of `update` to `job`, which is of
// `queue`, or changes nothing and says everything that is wrong. Whether `job` is another one now.
absl::StatusOr<bool> ApplyUpdate(const v1::TrainingJob& update,
                                 const google::protobuf::FieldMask& mask, const v1::Queue& queue,
                                 v1::TrainingJob* job);

}  // namespace ringmaster::coordinator
