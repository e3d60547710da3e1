// How an NcclRing fails and lets go.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "base/wait_for.h"
#include "worker/comm/nccl_ring.h"
#include "worker/comm/nccl_status.h"

namespace ringmaster::worker {
namespace {

constexpr absl::Duration kDiscardDeadline = absl::Seconds(20);
constexpr absl::Duration kWatchInterval = absl::Milliseconds(5);

}  // namespace

std::string NcclRing::Say(const std::string& what) const { return absl::StrCat(who_, ": ", what); }

absl::Status NcclRing::error() const {
  const std::lock_guard lock(state_);
  return error_;
}

void NcclRing::Watch() {
  static_cast<void>(cudaSetDevice(options_.device));
  while (true) {
    {
      std::unique_lock lock(state_);
      if (WaitFor(changed_, lock, kWatchInterval, [this] { return !error_.ok(); })) {
        return;
      }
    }
    if (absl::Status seen = Inspect(); !seen.ok()) {
      static_cast<void>(Fail(seen));
      return;
    }
  }
}

absl::Status NcclRing::Inspect() {
  const std::lock_guard lock(calls_);
  RETURN_IF_ERROR(error());
  ncclResult_t state = ncclSuccess;
  RETURN_IF_ERROR(
      NcclStatus(ncclCommGetAsyncError(comm_, &state), Say("watching the ring"), comm_));
  if (state != ncclInProgress) {
    RETURN_IF_ERROR(NcclStatus(state, Say("watching the ring"), comm_));
  }
  // Their events serve later groups by now.
  if (last_ticket_ > kEvents && done_ticket_ < last_ticket_ - kEvents) {
    done_ticket_ = last_ticket_ - kEvents;
    due_since_.reset();
  }
  for (; done_ticket_ < last_ticket_; ++done_ticket_, due_since_.reset()) {
    const cudaError_t done = cudaEventQuery(done_[(done_ticket_ + 1) % kEvents]);
    if (done == cudaErrorNotReady) {
      break;
    }
    RETURN_IF_ERROR(CudaStatus(done, Say("watching the ring")));
  }
  if (done_ticket_ == last_ticket_) {
    due_since_.reset();
    return absl::OkStatus();
  }
  const absl::Time now = SteadyNow();
  if (!due_since_.has_value()) {
    const cudaError_t produced = cudaEventQuery(produced_[(done_ticket_ + 1) % kEvents]);
    if (produced == cudaErrorNotReady) {
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(CudaStatus(produced, Say("watching the ring")));
    due_since_ = now;
  }
  if (now - *due_since_ > hop_deadline_) {
    return absl::DeadlineExceededError(
        Say("an exchange took too long; aborting, a new ring will form"));
  }
  return absl::OkStatus();
}

void NcclRing::Abort(const std::string& reason) {
  static_cast<void>(Fail(absl::AbortedError(Say(reason))));
}

absl::Status NcclRing::Fail(const absl::Status& status) {
  const std::lock_guard lock(state_);
  if (error_.ok()) {
    error_ = status;
    release_ = std::thread([this] { ReleaseOnThread(); });
    changed_.notify_all();
  }
  return error_;
}

void NcclRing::ReleaseOnThread() {
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  bool finalized = false;
  {
    // Whoever comes after this finds the error before it calls NCCL. What follows may take any
    // time, and nobody must wait for it but AwaitReleased.
    const std::lock_guard lock(calls_);
    comm = std::exchange(comm_, nullptr);
    stream = std::exchange(stream_, nullptr);
    finalized = finalized_;
  }
  static_cast<void>(cudaSetDevice(options_.device));
  if (comm != nullptr) {
    // Destroy is right only when every rank has finalised; all else ends by Abort, whose result
    // says nothing that could be acted on.
    static_cast<void>(finalized ? ncclCommDestroy(comm) : ncclCommAbort(comm));
  }
  absl::Status device;
  if (stream != nullptr) {
    device = CudaStatus(cudaStreamSynchronize(stream),
                        Say("the device is in an error that only a new process clears"));
    static_cast<void>(cudaStreamDestroy(stream));
  }
  {
    const std::lock_guard lock(calls_);
    for (const auto* events : {&produced_, &done_}) {
      for (cudaEvent_t event : *events) {
        if (event != nullptr) {
          static_cast<void>(cudaEventDestroy(event));
        }
      }
    }
  }
  static_cast<void>(cudaFree(device_greetings_));
  const std::lock_guard lock(state_);
  device_ = device;
  released_ = true;
  changed_.notify_all();
}

absl::Status NcclRing::AwaitReleased(absl::Duration deadline) {
  std::unique_lock lock(state_);
  if (!WaitFor(changed_, lock, deadline, [this] { return released_; })) {
    return absl::DeadlineExceededError(
        Say(absl::StrCat("NCCL did not let go within ", absl::FormatDuration(deadline),
                         "; the process must be restarted")));
  }
  return device_;
}

void NcclRing::Discard(std::unique_ptr<NcclRing> ring) {
  ring->Abort("the communicator was destroyed");
  if (absl::IsDeadlineExceeded(ring->AwaitReleased(kDiscardDeadline))) {
    static_cast<void>(ring.release());  // its thread may still come back
  }
}

}  // namespace ringmaster::worker
