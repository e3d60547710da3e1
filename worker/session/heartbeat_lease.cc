#include "worker/session/heartbeat_lease.h"

#include <algorithm>

namespace ringmaster::worker {
namespace {

// A stream that takes heartbeats and never answers must not grow this without limit.
constexpr size_t kUnackedMax = 1024;

}  // namespace

void HeartbeatLease::Grant(absl::Time now, absl::Duration ttl, absl::Duration interval) {
  ttl_ = ttl;
  interval_ = interval;
  until_ = now + ttl;
  next_ = now;
  unacked_.clear();
}

int64_t HeartbeatLease::Sent(absl::Time now) {
  unacked_.push_back({.sequence = ++sequence_, .time = now});
  if (unacked_.size() > kUnackedMax) {
    unacked_.pop_front();
  }
  next_ = now + interval_;
  return sequence_;
}

void HeartbeatLease::Acknowledged(int64_t sequence) {
  while (!unacked_.empty() && unacked_.front().sequence <= sequence) {
    until_ = std::max(until_, unacked_.front().time + ttl_);
    unacked_.pop_front();
  }
}

absl::Time HeartbeatLease::NextTimer(absl::Time now) const {
  return Held(now) ? std::min(next_, until_) : next_;
}

}  // namespace ringmaster::worker
