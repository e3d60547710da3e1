#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/wait_for.h"
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
    const std::lock_guard lock(mutex_);
    entries_.push_back({std::move(event), stream});
    came_.notify_one();
  }

  // The oldest entry; nothing when none came within `patience`.
  std::optional<Entry> Pop(absl::Duration patience) {
    std::unique_lock lock(mutex_);
    if (!WaitFor(came_, lock, patience, [this] { return !entries_.empty(); })) {
      return std::nullopt;
    }
    Entry entry = std::move(entries_.front());
    entries_.pop_front();
    return entry;
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::worker
