#include "coordinator/records/disk_threads.h"

#include <utility>

namespace ringmaster::coordinator {

DiskThreads::DiskThreads(int count) {
  for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Run(); });
}

DiskThreads::~DiskThreads() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void DiskThreads::PostAt(absl::Time when, std::function<void()> work) {
  absl::MutexLock lock(&mutex_);
  work_.push({.when = when, .order = next_order_++, .run = std::move(work)});
  changed_.Signal();
}

void DiskThreads::Run() {
  for (;;) {
    std::function<void()> run;
    {
      absl::MutexLock lock(&mutex_);
      while (!Ready()) {
        changed_.WaitWithDeadline(&mutex_,
                                  work_.empty() ? absl::InfiniteFuture() : work_.top().when);
      }
      if (stopping_) return;
      run = work_.top().run;
      work_.pop();
    }
    run();
  }
}

}  // namespace ringmaster::coordinator
