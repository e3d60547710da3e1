#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/page/job_page.h"
#include "coordinator/page/status_page.h"
#include "coordinator/services/call.h"
#include "coordinator/services/step_reads.h"

namespace ringmaster::coordinator {

// The pages, made of what the core and the disk tell. Each method waits for a few seconds at most,
// and is not for the loop's thread. A page that is refused has the core's status. Thread-safe.
class PageSource {
 public:
  explicit PageSource(const ServiceContext& services);

  // `project`: "projects/{project}", empty for all of them and the cluster.
  absl::StatusOr<std::string> Overview(const std::string& project) const;
  // `group`: the id of one, empty for all jobs. NotFound when there is none.
  absl::StatusOr<std::string> Jobs(const std::string& project, const std::string& group,
                                   const std::string& page_token) const;
  // `project`: as above, for the page's top.
  absl::StatusOr<std::string> Job(const std::string& project, const std::string& name) const;
  absl::StatusOr<std::string> Workers(const std::string& page_token) const;

 private:
  const ServiceContext services_;
  mutable StepReads steps_;
};

}  // namespace ringmaster::coordinator
