#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/core/core.h"
#include "coordinator/loop/core_metrics.h"
#include "coordinator/loop/directive_sink.h"
#include "coordinator/loop/watch_hub.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/store/store.h"

namespace ringmaster::coordinator {

struct EventLoopOptions {
  // Calls that wait; one more is refused. Worker reports wait at their streams instead.
  size_t queued_calls_max = 4096;
  // Events of one transaction.
  size_t batch_max = 512;
  // What refused callers are told to wait, and how often a full store is tried again.
  absl::Duration retry_delay = absl::Seconds(1);
  // How old the published snapshot and the gauges may be.
  absl::Duration publish_interval = absl::Milliseconds(500);
  // A clock that never steps back.
  std::function<absl::Time()> now;
  // The store is broken: nothing that was said can be kept. Must not return.
  std::function<void(const absl::Status&)> on_fatal;
};

// The one thread that owns the core and the store. It takes what has come in, lets the core decide,
// commits all row changes of the batch in one transaction, and only then releases replies,
// directives and changes: nothing that was said can be forgotten. Heartbeats make no rows and so
// cost no commit.
//
// When the store has no room, the batch is undone (Core::Reload), reads and heartbeats go on and
// mutations are refused with UNAVAILABLE until there is room again. All public methods are
// thread-safe; callbacks run on the loop's thread and must not block.
class EventLoop {
 public:
  using ReplyCallback = std::function<void(absl::StatusOr<ApiResponse>)>;

  // `core` was made from what `store` holds. `store` and `metrics` must outlive the loop.
  EventLoop(std::unique_ptr<Core> core, Store* store, Metrics* metrics, EventLoopOptions options);
  // Stops the thread; callers that still wait get UNAVAILABLE.
  ~EventLoop();

  void Start();

  // A call of a user. `reply` runs exactly once; at once, with UNAVAILABLE, when the queue is full.
  void Call(ApiMessage message, std::optional<absl::StatusOr<ManifestFile>> manifest,
            absl::Time deadline, ReplyCallback reply);
  void WorkerEnded(v1::ReportFaultRequest request, absl::Time deadline, ReplyCallback reply);

  // A worker's stream, from its opening on. The loop keeps `sink` until CloseStream.
  uint64_t OpenStream(std::shared_ptr<DirectiveSink> sink);
  // `taken` runs when the report was handled: then the next one may be read.
  void Report(uint64_t stream, v1::WorkerReport report, std::function<void()> taken);
  void CloseStream(uint64_t stream);

  // Snapshot, then changes, until Unwatch or until the sink refuses. NOT_FOUND for an unknown job
  // closes the sink.
  void Watch(v1::WatchTrainingJobsRequest request, std::shared_ptr<WatchSink> sink);
  void Unwatch(std::shared_ptr<WatchSink> sink);

  // Refuses mutations from now on and ends watches and worker streams; then `drained` runs.
  void Drain(std::function<void()> drained);

  absl::Time Now() const { return options_.now(); }  // Deadlines are told by this clock.
  std::shared_ptr<const CoreSnapshot> snapshot() const;
  // The loop turns at least once a second, unless it hangs.
  absl::Duration SinceLastTurn() const;

  // One round without waiting: what the thread does when there is something to do. For tests
  // without Start().
  void RunOnce();
  // When RunOnce() is due though nothing comes in.
  absl::Time NextWake() const;

 private:
  struct Item {
    std::optional<Event> event;
    // Of a call: its number is filled in when it is taken.
    ReplyCallback reply;
    absl::Time deadline = absl::InfiniteFuture();
    // Runs once the batch is committed or given up.
    std::function<void()> after;
  };

  void Run();
  void Enqueue(Item item);
  void EnqueueCall(Item item);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  }
  std::vector<Item> Take();
  std::vector<std::shared_ptr<DirectiveSink>> Sinks() const;

  // Gives the batch to the core and commits; its output is released only if that worked.
  absl::Status Attempt(absl::Time now, std::vector<Item>& batch);
  absl::Status CommitAndRelease(absl::Time now, Output output);
  Output Handle(absl::Time now, std::vector<Item>& batch);
  void Release(const Output& output);
  // The commit failed: the core's memory becomes what is stored.
  void Recover(absl::Time now, const absl::Status& why);
  void CheckReserve(absl::Time now);  // Without it the store counts as full.
  void TryStoreAgain(absl::Time now);
  void Refuse(Item& item, const absl::Status& status);
  void Publish(absl::Time now);

  const EventLoopOptions options_;
  Store* const store_;
  Metrics* const metrics_;

  // The standard's: ThreadSanitizer does not see the distribution's Abseil lock.
  mutable std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_stream_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::shared_ptr<DirectiveSink>> streams_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const CoreSnapshot> snapshot_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_turn_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();

  // Of the loop's thread.
  std::unique_ptr<Core> core_;
  WatchHub hub_;
  CoreMetrics core_metrics_;
  uint64_t next_call_ = 1;
  std::map<uint64_t, ReplyCallback*> calls_;
  bool store_full_ = false;
  absl::Time next_store_trial_ = absl::InfiniteFuture();
  absl::Time next_publish_ = absl::InfinitePast();

  std::thread thread_;
};

}  // namespace ringmaster::coordinator
