#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace ringmaster::coordinator {

// A few threads for work that waits for the shared file system, which may hang: neither the event
// loop nor gRPC's threads may wait for it. Thread-safe.
class DiskThreads {
 public:
  explicit DiskThreads(int count);
  // Drops work that has not begun and waits for the rest.
  ~DiskThreads();
  DiskThreads(const DiskThreads&) = delete;
  DiskThreads& operator=(const DiskThreads&) = delete;

  void Post(std::function<void()> work) { PostAfter(absl::ZeroDuration(), std::move(work)); }
  void PostAfter(absl::Duration delay, std::function<void()> work);

 private:
  // Steady: a change of the machine's clock delays nothing.
  using Clock = std::chrono::steady_clock;
  struct Work {
    Clock::time_point when;
    uint64_t order;
    std::function<void()> run;
    // For std::priority_queue: the earliest first, in the order of posting.
    bool operator<(const Work& other) const {
      return when != other.when ? when > other.when : order > other.order;
    }
  };

  void Run();
  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || (!work_.empty() && work_.top().when <= Clock::now());
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::priority_queue<Work> work_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_order_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ringmaster::coordinator
