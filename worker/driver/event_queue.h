#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/session/session_events.h"

namespace ringmaster::worker {

// What all threads tell the control thread, in the order in which they said it. Thread-safe.
class EventQueue {
 public:
  struct Entry {
    Event event;
    // Of StreamUp: the stream's number.
    int64_t stream = 0;
  };

  void Push(Event event, int64_t stream = 0) {
    absl::MutexLock lock(&mutex_);
    entries_.push_back({std::move(event), stream});
  }

  // The oldest entry; nothing when none came within `patience`.
  std::optional<Entry> Pop(absl::Duration patience) {
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !entries_.empty(); };
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&any), patience)) {
      return std::nullopt;
    }
    Entry entry = std::move(entries_.front());
    entries_.pop_front();
    return entry;
  }

 private:
  absl::Mutex mutex_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::worker
