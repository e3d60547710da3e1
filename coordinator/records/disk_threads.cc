#include "coordinator/records/disk_threads.h"

#include <utility>

namespace ringmaster::coordinator {

DiskThreads::DiskThreads(int count) {
  for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Run(); });
}

DiskThreads::~DiskThreads() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void DiskThreads::PostAfter(absl::Duration delay, std::function<void()> work) {
  const Clock::time_point when = Clock::now() + absl::ToChronoNanoseconds(delay);
  std::lock_guard lock(mutex_);
  work_.push({.when = when, .order = next_order_++, .run = std::move(work)});
  changed_.notify_one();
}

void DiskThreads::Run() {
  for (;;) {
    std::function<void()> run;
    {
      std::unique_lock lock(mutex_);
      while (!Ready()) {
        if (work_.empty()) {
          changed_.wait(lock);
        } else {
          // A copy: it is read again after the wait, and the queue moves when it grows.
          const Clock::time_point when = work_.top().when;
          changed_.wait_until(lock, when);
        }
      }
      if (stopping_) return;
      run = work_.top().run;
      work_.pop();
      // Another may wait for nothing while this thread, which knew of the rest, is busy.
      if (!work_.empty()) changed_.notify_one();
    }
    run();
  }
}

}  // namespace ringmaster::coordinator
