#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "ringmaster/v1/worker_service.pb.h"
#include "worker/comm/communicator.h"
#include "worker/data/sequence_source.h"
#include "worker/train/job_config.h"
#include "worker/train/training_state.h"

namespace ringmaster::worker {

// What a worker keeps of its job from one generation to the next: configuration, data, and the
// training state with its digest. Lives on the trainer's thread.
class HeldJob {
 public:
  // `device` is "cpu" or "cuda".
  explicit HeldJob(std::string device) : device_(std::move(device)) {}

  // Does on a CUDA device what its first use on this thread would spend a second on (context,
  // handles, kernels), while no ring waits for it. An error means that the device is of no use.
  absl::Status WarmUp() const;
  // Gives cached memory back to the device.
  void TrimMemory() const;

  // Reads the spec; forgets another job first. InvalidArgument for a spec that cannot be trained.
  absl::Status Adopt(const v1::FormRing& form);
  // Opens the data and allocates a state, when they are not there yet; it says nothing until
  // Restore. Errors of ByteCorpus, SequenceSource and TrainingState; Cancelled.
  absl::Status Build(absl::FunctionRef<bool()> cancelled);
  void Drop();

  // Reads the state once, for its digest, when that is not known. An error means that the device is
  // of no use any more and only a new process helps.
  absl::Status Examine();
  // What the coordinator is told. REQUIRES: Examine was OK since the last change.
  v1::HeldState Report() const;

  // Makes the state what `plan` says; collective over `communicator` for PEER. Cancelled soon after
  // `cancelled` says so while files are read. REQUIRES: Build.
  absl::Status Restore(const v1::RestorePlan& plan, const v1::TrainingJobSpec& spec, int rank,
                       Communicator& communicator, absl::FunctionRef<bool()> cancelled);

  // The state is about to change: the digest is no longer known.
  void Touch() { digest_.reset(); }

  const JobConfig& config() const { return config_; }
  const SequenceSource& source() const { return *source_; }
  TrainingState& state() { return *state_; }

 private:
  absl::Status RestoreFresh(const v1::RestorePlan& plan, const v1::TrainingJobSpec& spec,
                            absl::FunctionRef<bool()> cancelled);

  const std::string device_;
  std::string uid_;
  JobConfig config_;
  std::optional<SequenceSource> source_;
  std::unique_ptr<TrainingState> state_;
  // A restore has succeeded: the state means something.
  bool restored_ = false;
  std::optional<uint64_t> digest_;
};

}  // namespace ringmaster::worker
