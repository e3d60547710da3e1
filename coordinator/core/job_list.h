#pragma once

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// A page of the jobs that a request asks for, in its order. InvalidArgument naming the field.
absl::StatusOr<v1::ListTrainingJobsResponse> ListJobs(const State& state,
                                                      const v1::ListTrainingJobsRequest& request);

}  // namespace ringmaster::coordinator
