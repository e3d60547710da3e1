#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "coordinator/services/call.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::coordinator {

// One WorkerService.Session call. Reads one report at a time and the next when the loop has handled
// it, so that a worker that talks too much waits by itself; writes directives in order from a
// bounded queue. When it ends, the loop hears no more of it, whether or not the worker reads what
// was written; the call ends at most kEndGrace later. Owned by gRPC and the loop together: gone
// when both have let go.
class SessionStream : public grpc::ServerBidiReactor<v1::WorkerReport, v1::Directive>,
                      public DirectiveSink,
                      public std::enable_shared_from_this<SessionStream> {
 public:
  // Directives that wait for a worker that does not read; one more ends the stream.
  static constexpr size_t kQueuedDirectivesMax = 1024;

  // For a directive that is being written when the stream ends.
  static constexpr absl::Duration kEndGrace = absl::Seconds(1);

  SessionStream(const ServiceContext& services, grpc::CallbackServerContext* context)
      : services_(services), context_(context) {}

  static constexpr Method kMethod = {"WorkerService", "Session"};
  // Attaches to the loop and reads the first report. `caller`: as Access::Admit() names
  // it; the stream ends with its token.
  void Begin(const std::string& caller);

  void Send(v1::Directive directive) override;
  void Close(const absl::Status& status) override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The directive that is being written stays until its write ends.
  void DropWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReadNext();
  void DropAndEnd(const absl::Status& status);
  void CancelUnfinished();

  const ServiceContext services_;
  grpc::CallbackServerContext* const context_;
  uint64_t hold_ = 0;
  // While gRPC may call.
  std::shared_ptr<SessionStream> self_;
  v1::WorkerReport report_;

  std::mutex mutex_;
  uint64_t stream_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<v1::Directive> directives_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::coordinator
