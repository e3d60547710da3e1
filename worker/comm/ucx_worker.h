#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"

namespace ringmaster::worker {

// One UCP context and worker (TCP unless UCX_TLS says otherwise: the shared-memory transports do
// not notice a dead peer), and the loop that drives it. The UCP objects belong to the thread in
// Run; others only Post.
class UcxWorker {
 public:
  // `client_id` is told to every listener that this worker connects to. Listens and talks on the
  // interface that has `host`, and on no other, unless UCX_TLS or UCX_NET_DEVICES says otherwise.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(uint64_t client_id,
                                                           const std::string& host);
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  ucp_worker_h handle() const { return worker_; }

  // Has `task` run by the thread in Run, soon and in order. Any thread; a task that comes when Run
  // has ended is dropped.
  void Post(std::function<void()> task);

  // Runs tasks and progresses communication until `finished`, asked after each round, says so.
  // Sleeps when there is nothing to do; while `closing` is true it looks again every few
  // milliseconds.
  void Run(const std::function<bool()>& finished, const bool& closing);

  // Destroys the UCP objects: UCX touches no memory of others any more. After Run only, on its
  // thread.
  void Shut();

 private:
  UcxWorker() = default;
  bool RunTasks();
  void Sleep(bool briefly);

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int worker_fd_ = -1;
  int wake_fd_ = -1;
  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::worker
