#pragma once

#include <string>

#include "tests/coordinator/core/core_driver.h"

// What users ask for of a job that there is.
namespace ringmaster::coordinator {

template <typename Request>
Request Of(CoreDriver& d, const std::string& id = "job-a") {
  Request request;
  request.set_name(d.Job(id).name());
  return request;
}

inline absl::StatusOr<v1::TrainingJob> Pause(CoreDriver& d, const std::string& id = "job-a") {
  return d.Call<v1::TrainingJob>(Of<v1::PauseTrainingJobRequest>(d, id));
}

inline absl::StatusOr<v1::TrainingJob> Resume(CoreDriver& d, const std::string& id = "job-a") {
  return d.Call<v1::TrainingJob>(Of<v1::ResumeTrainingJobRequest>(d, id));
}

inline absl::StatusOr<v1::TrainingJob> Cancel(CoreDriver& d, const std::string& id = "job-a") {
  return d.Call<v1::TrainingJob>(Of<v1::CancelTrainingJobRequest>(d, id));
}

// Younger than those before.
inline absl::StatusOr<v1::TrainingJob> Submit(CoreDriver& d, const std::string& id,
                                              int32_t priority, int ring = 1) {
  v1::CreateTrainingJobRequest request = CoreDriver::CreateRequest(id, ring);
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  d.Sleep(absl::Milliseconds(1));
  return d.Call<v1::TrainingJob>(request);
}

inline absl::StatusOr<v1::TrainingJob> Reprioritise(CoreDriver& d, const std::string& id,
                                                    int32_t priority) {
  v1::UpdateTrainingJobRequest request;
  request.mutable_training_job()->set_name(d.Job(id).name());
  request.mutable_training_job()->mutable_spec()->set_priority(priority);
  request.mutable_update_mask()->add_paths("spec.priority");
  return d.Call<v1::TrainingJob>(request);
}

}  // namespace ringmaster::coordinator
