#pragma once

#include <cstddef>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/records/disk_threads.h"
#include "coordinator/records/step_samples.h"

namespace ringmaster::coordinator {

// Samples of step logs for pages, by one thread of their own: whose disk hangs takes no other work
// with it. Thread-safe.
class StepReads {
 public:
  using Read = std::function<std::vector<v1::StepRecord>(const std::string& path,
                                                         const std::string& training_job_uid)>;

  // `patience`: how long a caller waits.
  explicit StepReads(absl::Duration patience, Read read = SampleSteps);

  // SampleSteps(). Those who ask for the same job at the same time share one read. Unavailable:
  // it takes too long, or too many wait already.
  absl::StatusOr<std::vector<v1::StepRecord>> Of(const std::string& path,
                                                 const std::string& training_job_uid);

 private:
  using Samples = std::shared_future<std::vector<v1::StepRecord>>;

  absl::StatusOr<Samples> Begin(const std::string& path, const std::string& training_job_uid);

  const absl::Duration patience_;
  const Read read_;
  std::mutex mutex_;
  // That are not done, by the job's uid.
  std::map<std::string, Samples> reads_ ABSL_GUARDED_BY(mutex_);
  // Uses what is above.
  DiskThreads thread_{1};
};

}  // namespace ringmaster::coordinator
