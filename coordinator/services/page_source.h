#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/page/job_page.h"
#include "coordinator/page/status_page.h"
#include "coordinator/services/call.h"

namespace ringmaster::coordinator {

// The pages, made of what the core and the disk tell. Each method waits for a few seconds at most,
// and is not for the loop's thread. A page that is refused has the core's status. Thread-safe.
class PageSource {
 public:
  explicit PageSource(const ServiceContext& services) : services_(services) {}

  // `project`: "projects/{project}", empty for all of them and the cluster.
  absl::StatusOr<std::string> Overview(const std::string& project) const;
  // `group`: the id of one, empty for all jobs. NotFound when there is none.
  absl::StatusOr<std::string> Jobs(const std::string& project, const std::string& group,
                                   const std::string& page_token) const;
  // `project`: as above, for the page's top.
  absl::StatusOr<std::string> Job(const std::string& project, const std::string& name) const;
  absl::StatusOr<std::string> Workers(const std::string& page_token) const;

 private:
  absl::StatusOr<std::vector<v1::StepRecord>> Steps(const v1::TrainingJob& job) const;

  const ServiceContext services_;
  // Step logs that are being read; shared with the reads, as one of a disk that hangs may outlive
  // us.
  const std::shared_ptr<std::atomic<int>> reads_ = std::make_shared<std::atomic<int>>(0);
};

}  // namespace ringmaster::coordinator
