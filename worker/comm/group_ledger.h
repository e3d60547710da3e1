#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/exchange/exchange.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// The books of a host transport: which messages of which groups are still under way, and the first
// error. The thread that uses the exchange opens groups and awaits them; the transport's threads
// report what is done. Thread-safe.
class GroupLedger {
 public:
  // `on_failure` is called once, without locks held, by the thread whose Fail or Await is the first
  // to fail; it must see to it that Released is called soon.
  GroupLedger(const CommunicatorOptions& options, std::function<void()> on_failure);

  // "ring generation 7 rank 3", for messages.
  const std::string& who() const { return who_; }

  // Checks the peers and the pointers of a group and writes it down. Messages are numbered sends
  // first, then receives; those of zero bytes count as done.
  absl::StatusOr<uint64_t> Open(absl::Span<const attention::SendBuffer> sends,
                                absl::Span<const attention::ReceiveBuffer> receives);
  // The transport is through with that message and its buffer.
  void Done(uint64_t group, int message);
  // Only the first error counts.
  void Fail(const absl::Status& error);
  // After a failure: the transport touches no buffer of any group any more.
  void Released();

  // What counts from now on in place of the hop deadline: connecting has another one.
  void UseDeadline(absl::Duration deadline);
  // Until the group (or all groups) is done, at most for the hop deadline. After a failure the call
  // returns only once the buffers are released, and with the first error.
  absl::Status Await(uint64_t group);
  absl::Status AwaitAll();

  // The first error, or OK.
  absl::Status status() const;
  absl::Status AwaitReleased(absl::Duration deadline);
  uint64_t sent_bytes() const;
  // What was sent so far was no payload.
  void ForgetSent();

 private:
  struct Message {
    int peer;
    bool receive;
    bool done;
  };
  struct Group {
    std::vector<Message> messages;
    int pending = 0;
  };

  template <typename Condition>
  absl::Status AwaitUntil(const Condition& done);
  absl::Status Late() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int rank_;
  const int size_;
  const std::string who_;
  const std::function<void()> on_failure_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  // Groups that are under way; one that is done is forgotten.
  std::map<uint64_t, Group> groups_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_group_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t sent_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  absl::Duration deadline_ ABSL_GUARDED_BY(mutex_);
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ringmaster::worker
