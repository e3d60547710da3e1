#pragma once

#include <vector>

#include "absl/time/time.h"
#include "coordinator/page/html.h"
#include "ringmaster/v1/cluster_service.pb.h"
#include "ringmaster/v1/job.pb.h"
#include "ringmaster/v1/queue_service.pb.h"

// The tables that pages are made of.
namespace ringmaster::coordinator {

Html JobsTable(const std::vector<const v1::TrainingJob*>& jobs, absl::Time now);
Html WorkersTable(const v1::ListWorkersResponse& workers);
Html QueuesTable(const v1::ListQueuesResponse& queues);

// A recovery, and whose it is.
struct Recovery {
  const v1::TrainingJob* job;
  const v1::RecoveryEpisode* episode;
};
// In the order given. `of_one_job`: without a column that names it.
Html RecoveriesTable(const std::vector<Recovery>& recoveries, bool of_one_job, absl::Time now);

}  // namespace ringmaster::coordinator
