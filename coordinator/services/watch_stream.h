#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "coordinator/services/call.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// One WatchTrainingJobs call: writes the snapshot, then changes from a bounded queue. Owned by gRPC
// and the loop together.
class WatchStream : public grpc::ServerWriteReactor<v1::WatchTrainingJobsResponse>,
                    public WatchSink,
                    public std::enable_shared_from_this<WatchStream> {
 public:
  explicit WatchStream(const ServiceContext& services) : services_(services) {}

  static constexpr Method kMethod = {"JobService", "WatchTrainingJobs"};
  // `caller`: as Access::Admit() names it; the stream ends with its token.
  void Begin(const v1::WatchTrainingJobsRequest& request, const std::string& caller);

  void Start(std::vector<WatchMessage> snapshot) override;
  bool Offer(const WatchMessage& message) override;
  void Close(const absl::Status& status) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The message that is being written stays until its write ends.
  void DropWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropAndEnd(const absl::Status& status);

  const ServiceContext services_;
  uint64_t hold_ = 0;
  // While gRPC may call.
  std::shared_ptr<WatchStream> self_;

  std::mutex mutex_;
  std::deque<WatchMessage> messages_ ABSL_GUARDED_BY(mutex_);
  // Messages of the snapshot that wait still; they do not count against the limit.
  size_t snapshot_left_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::coordinator
