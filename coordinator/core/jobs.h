#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"

// What users ask about jobs. Field and error rules are those of job_service.proto.
namespace ringmaster::coordinator {

absl::StatusOr<v1::TrainingJob> CreateJob(
    State& state, const v1::CreateTrainingJobRequest& request,
    const std::optional<absl::StatusOr<ManifestFile>>& manifest);
absl::StatusOr<v1::TrainingJob> GetJob(State& state, const v1::GetTrainingJobRequest& request);
absl::StatusOr<v1::TrainingJob> CancelJob(State& state,
                                          const v1::CancelTrainingJobRequest& request);
absl::StatusOr<v1::TrainingJob> UpdateJob(State& state,
                                          const v1::UpdateTrainingJobRequest& request);
absl::StatusOr<v1::TrainingJob> PauseJob(State& state, const v1::PauseTrainingJobRequest& request);
absl::StatusOr<v1::TrainingJob> ResumeJob(State& state,
                                          const v1::ResumeTrainingJobRequest& request);
absl::StatusOr<google::protobuf::Empty> DeleteJob(State& state,
                                                  const v1::DeleteTrainingJobRequest& request);

}  // namespace ringmaster::coordinator
