#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/core/core.h"
#include "coordinator/page/html.h"

namespace ringmaster::coordinator {

// Jobs that are listed together.
struct JobGroup {
  // Also in addresses: /jobs?group=running.
  const char* name;
  // Empty: all.
  std::vector<v1::TrainingJobStatus::State> states;
};
absl::Span<const JobGroup> JobGroups();
// Null when there is none.
const JobGroup* FindJobGroup(absl::string_view name);

// What every page says at its top.
struct PageContext {
  const CoreSnapshot& snapshot;
  // "projects/{project}" whose jobs alone are shown, empty for all. Then nothing is told of the
  // cluster as a whole but how the coordinator is: its version and epoch, whether it drains and
  // whether its store is full.
  std::string project;
  absl::Time now;
};

// What the snapshot does not have.
struct Overview {
  // Of the jobs that wait, the newest.
  v1::ListTrainingJobsResponse waiting;
  v1::ListQueuesResponse queues;
  // Of the cluster, so not of one project.
  std::optional<v1::ListWorkersResponse> workers;
};
std::string OverviewPage(const PageContext& context, const Overview& overview);

// One group, as far as `jobs` goes; its next_page_token leads to the next page.
std::string JobsPage(const PageContext& context, const JobGroup& group,
                     const v1::ListTrainingJobsResponse& jobs);

std::string WorkersPage(const PageContext& context, const v1::ListWorkersResponse& workers);

// "Ringmaster", where one is, and what is wrong with the coordinator.
Html PageHeader(const PageContext& context);

}  // namespace ringmaster::coordinator
