#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "worker/comm/cuda_plugin_abi.h"

namespace ringmaster::worker {

struct LoadedNccl {
  std::string version;
  std::string path;
};
// FailedPrecondition unless it is the version that this was compiled for: two copies on one machine
// are a well-known trap, and the first one loaded serves all.
absl::StatusOr<LoadedNccl> FindNccl();

// One non-blocking NCCL communicator with a stream of its own. Groups run in the order of Start,
// one after the other: ranks must start the groups that depend on each other in compatible orders,
// which symmetrical exchanges do.
//
// NCCL is called by one thread at a time. The first failure (Abort is one) is noted, and then the
// communicator is aborted on a thread of its own, since that call may block; nothing is finalised
// or destroyed after a failure. Peers over a network see Unavailable at once; over NVLink NCCL
// tells nothing, and the hop deadline or the coordinator does. A thread watches the groups under
// way, because the host may wait for the device in calls that know no deadline: a copy, an item().
// The abort lets those return as if all had gone well; Settle then tells.
class NcclRing {
 public:
  static absl::StatusOr<std::unique_ptr<NcclRing>> Open(const RingmasterNcclOptions& options);
  NcclRing(const NcclRing&) = delete;
  NcclRing& operator=(const NcclRing&) = delete;

  // Destroys `ring`, or leaves it behind when NCCL does not let go in time.
  static void Discard(std::unique_ptr<NcclRing> ring);
  ~NcclRing();

  const std::string& address() const { return address_; }
  absl::Status Connect(const std::vector<std::string>& addresses, absl::Duration deadline);
  absl::StatusOr<uint64_t> Start(absl::Span<const RingmasterNcclMessage> sends,
                                 absl::Span<const RingmasterNcclMessage> receives,
                                 cudaStream_t producer);
  absl::Status Wait(uint64_t ticket, cudaStream_t consumer);
  absl::Status Settle();
  absl::Status Close();
  void Abort(const std::string& reason);
  // Internal when the device is in an error that only the end of the process clears.
  absl::Status AwaitReleased(absl::Duration deadline);

 private:
  // A ticket's event serves again this many groups later; waiting for a later group is always
  // enough.
  static constexpr size_t kEvents = 512;

  explicit NcclRing(const RingmasterNcclOptions& options);

  std::string Say(const std::string& what) const;
  absl::Status error() const;
  // Notes the first error and starts the abort; returns the first error.
  absl::Status Fail(const absl::Status& status);
  void ReleaseOnThread();

  absl::StatusOr<ncclUniqueId> CheckAddresses(const std::vector<std::string>& addresses) const;
  absl::Status PrepareDevice();
  // Tells every rank what this one belongs to, and checks what it hears.
  absl::Status Greet(uint64_t ring_hash, absl::Time deadline);
  absl::Status Launch(absl::Span<const RingmasterNcclMessage> sends,
                      absl::Span<const RingmasterNcclMessage> receives, absl::Time deadline);
  // Until NCCL is no more in progress and `done` says cudaSuccess instead of cudaErrorNotReady.
  // Takes and leaves calls_ again and again, so that an abort can come between.
  absl::Status Poll(absl::Time deadline, const std::string& what,
                    const std::function<cudaError_t()>& done);

  // The watching thread: fails the ring when NCCL reports an error, or when the oldest group has
  // taken the hop deadline since its turn came and its producer was done.
  void Watch();
  absl::Status Inspect();

  const RingmasterNcclOptions options_;
  const std::string who_;
  const absl::Duration hop_deadline_;
  std::string address_;

  // What ranks tell each other in Greet: generation, rank, hash; by rank, in pinned memory and on
  // the device.
  int64_t* greetings_ = nullptr;
  int64_t* device_greetings_ = nullptr;

  // Held by whoever calls NCCL or CUDA for this ring, for a short time only. Taken before state_.
  std::mutex calls_;
  ncclComm_t comm_ ABSL_GUARDED_BY(calls_) = nullptr;
  cudaStream_t stream_ ABSL_GUARDED_BY(calls_) = nullptr;
  std::array<cudaEvent_t, kEvents> produced_ ABSL_GUARDED_BY(calls_) = {};
  std::array<cudaEvent_t, kEvents> done_ ABSL_GUARDED_BY(calls_) = {};
  uint64_t last_ticket_ ABSL_GUARDED_BY(calls_) = 0;
  // All groups up to here have been seen to be done.
  uint64_t done_ticket_ ABSL_GUARDED_BY(calls_) = 0;
  // Since when nothing but its peers can hold up the group after that; none while it waits for its
  // producer.
  std::optional<absl::Time> due_since_ ABSL_GUARDED_BY(calls_);
  bool finalized_ ABSL_GUARDED_BY(calls_) = false;

  mutable std::mutex state_;
  std::condition_variable changed_;
  absl::Status error_ ABSL_GUARDED_BY(state_);
  bool released_ ABSL_GUARDED_BY(state_) = false;
  absl::Status device_ ABSL_GUARDED_BY(state_);
  std::thread release_ ABSL_GUARDED_BY(state_);
  std::thread watch_;
};

}  // namespace ringmaster::worker
