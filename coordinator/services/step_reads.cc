#include "coordinator/services/step_reads.h"

#include <memory>
#include <utility>

#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kReadsMax = 8;

}  // namespace

StepReads::StepReads(absl::Duration patience, Read read)
    : patience_(patience), read_(std::move(read)) {}

absl::StatusOr<StepReads::Samples> StepReads::Begin(const std::string& path,
                                                    const std::string& training_job_uid) {
  const std::lock_guard lock(mutex_);
  const auto found = reads_.find(training_job_uid);
  if (found != reads_.end()) return found->second;
  if (reads_.size() >= kReadsMax) {
    return absl::UnavailableError("too many step logs are being read already");
  }
  auto promise = std::make_shared<std::promise<std::vector<v1::StepRecord>>>();
  const Samples samples = promise->get_future().share();
  reads_.emplace(training_job_uid, samples);
  thread_.Post([this, promise, path, training_job_uid] {
    std::vector<v1::StepRecord> steps = read_(path, training_job_uid);
    {
      const std::lock_guard done(mutex_);
      reads_.erase(training_job_uid);
    }
    promise->set_value(std::move(steps));
  });
  return samples;
}

absl::StatusOr<std::vector<v1::StepRecord>> StepReads::Of(const std::string& path,
                                                          const std::string& training_job_uid) {
  ASSIGN_OR_RETURN(const Samples samples, Begin(path, training_job_uid));
  if (samples.wait_for(absl::ToChronoNanoseconds(patience_)) != std::future_status::ready) {
    return absl::UnavailableError("the step log could not be read in time");
  }
  return samples.get();
}

}  // namespace ringmaster::coordinator
