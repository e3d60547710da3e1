#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/page/status_page.h"
#include "ringmaster/v1/checkpoint_service.pb.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

struct JobDetails {
  v1::TrainingJob job;
  // The newest ones.
  v1::ListCheckpointsResponse checkpoints;
  // Some of its steps, or why there are none to be had.
  absl::StatusOr<std::vector<v1::StepRecord>> steps;
};

// All there is to say about one job.
std::string JobPage(const PageContext& context, const JobDetails& details);

}  // namespace ringmaster::coordinator
