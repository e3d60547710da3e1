#include "worker/comm/group_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/wait_for.h"
#include "worker/comm/accused_ranks.h"

namespace ringmaster::worker {

GroupLedger::GroupLedger(const CommunicatorOptions& options, std::function<void()> on_failure)
    : rank_(options.rank),
      size_(options.world_size),
      who_(absl::StrFormat("ring generation %d rank %d", options.generation, options.rank)),
      on_failure_(std::move(on_failure)),
      deadline_(options.hop_deadline) {}

absl::StatusOr<uint64_t> GroupLedger::Open(absl::Span<const attention::SendBuffer> sends,
                                           absl::Span<const attention::ReceiveBuffer> receives) {
  Group group;
  uint64_t bytes = 0;
  const auto add = [&](int peer, const void* data, size_t size, bool receive) {
    if (peer < 0 || peer >= size_ || peer == rank_ || (data == nullptr && size > 0)) {
      return false;
    }
    group.messages.push_back({.peer = peer, .receive = receive, .done = size == 0});
    group.pending += size > 0 ? 1 : 0;
    return true;
  };
  bool valid = true;
  for (const attention::SendBuffer& send : sends) {
    valid = add(send.peer, send.data, send.bytes, /*receive=*/false) && valid;
    bytes += send.bytes;
  }
  for (const attention::ReceiveBuffer& receive : receives) {
    valid = add(receive.peer, receive.data, receive.bytes, /*receive=*/true) && valid;
  }
  if (!valid) {
    return absl::InvalidArgumentError(absl::StrCat(
        who_, ": a message of a group names no other rank of ", size_, ", or has no buffer"));
  }
  const std::lock_guard lock(mutex_);
  if (!error_.ok()) {
    return error_;
  }
  sent_bytes_ += bytes;
  const uint64_t id = next_group_++;
  if (group.pending > 0) {
    groups_.emplace(id, std::move(group));
  }
  return id;
}

void GroupLedger::Done(uint64_t group, int message) {
  const std::lock_guard lock(mutex_);
  const auto found = groups_.find(group);
  if (found == groups_.end() || found->second.messages[message].done) {
    return;
  }
  found->second.messages[message].done = true;
  if (--found->second.pending == 0) {
    groups_.erase(found);
    changed_.notify_all();
  }
}

void GroupLedger::Fail(const absl::Status& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_.ok()) {
      return;
    }
    error_ = error;
    changed_.notify_all();
  }
  on_failure_();
}

void GroupLedger::Released() {
  const std::lock_guard lock(mutex_);
  released_ = true;
  changed_.notify_all();
}

absl::Status GroupLedger::Await(uint64_t group) {
  return AwaitUntil([this, group] { return !error_.ok() || !groups_.contains(group); });
}

absl::Status GroupLedger::AwaitAll() {
  return AwaitUntil([this] { return !error_.ok() || groups_.empty(); });
}

template <typename Condition>
absl::Status GroupLedger::AwaitUntil(const Condition& done) {
  absl::Status late;
  {
    std::unique_lock lock(mutex_);
    if (!WaitFor(changed_, lock, deadline_, done)) {
      late = Late();
    } else if (error_.ok()) {
      return absl::OkStatus();
    }
  }
  if (!late.ok()) {
    Fail(late);
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return released_; });
  return error_;
}

absl::Status GroupLedger::Late() const {
  // A send waits for its receiver, so a missing receive tells more about who is behind.
  const Message* first = nullptr;
  for (const auto& [id, group] : groups_) {
    for (const Message& message : group.messages) {
      if (!message.done && (first == nullptr || (message.receive && !first->receive))) {
        first = &message;
      }
    }
  }
  const std::string what =
      first == nullptr
          ? "an exchange"
          : absl::StrCat(first->receive ? "receive from rank " : "send to rank ", first->peer);
  const absl::Status error = absl::DeadlineExceededError(
      absl::StrCat(who_, ": ", what, " exceeded ", absl::FormatDuration(deadline_),
                   "; aborting, a new ring will form"));
  return first == nullptr ? error : Accuse(error, {first->peer});
}

absl::Status GroupLedger::status() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

absl::Status GroupLedger::AwaitReleased(absl::Duration deadline) {
  std::unique_lock lock(mutex_);
  if (WaitFor(changed_, lock, deadline, [this] { return released_; })) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(absl::StrCat(who_, ": the transport did not let go within ",
                                                  absl::FormatDuration(deadline),
                                                  "; the process must be restarted"));
}

void GroupLedger::UseDeadline(absl::Duration deadline) {
  const std::lock_guard lock(mutex_);
  deadline_ = deadline;
}

void GroupLedger::ForgetSent() {
  const std::lock_guard lock(mutex_);
  sent_bytes_ = 0;
}

uint64_t GroupLedger::sent_bytes() const {
  const std::lock_guard lock(mutex_);
  return sent_bytes_;
}

}  // namespace ringmaster::worker
