#pragma once

#include <cstdint>
#include <deque>

#include "absl/time/time.h"

namespace ringmaster::worker {

// When the next heartbeat is due, and until when the coordinator surely counts this worker as
// alive: the lease runs from the *sending* of the newest acknowledged heartbeat, which is never
// later than the coordinator's own reckoning. Thread-compatible; time is an argument.
class HeartbeatLease {
 public:
  // A Welcome came: counts as an acknowledgement now.
  void Grant(absl::Time now, absl::Duration ttl, absl::Duration interval);
  // The stream broke: no heartbeats until the next Grant; the lease runs on.
  void Suspend() { next_ = absl::InfiniteFuture(); }

  bool HeartbeatDue(absl::Time now) const { return now >= next_; }
  // The sequence number of a heartbeat sent now; rises by one.
  int64_t Sent(absl::Time now);
  void Acknowledged(int64_t sequence);

  bool Held(absl::Time now) const { return now < until_; }
  int64_t sent_sequence() const { return sequence_; }
  // Of the next heartbeat or the lease's end, whichever comes first and is still ahead of `now`.
  absl::Time NextTimer(absl::Time now) const;

 private:
  struct SentHeartbeat {
    int64_t sequence = 0;
    absl::Time time;
  };
  absl::Duration ttl_;
  absl::Duration interval_;
  absl::Time next_ = absl::InfiniteFuture();
  absl::Time until_ = absl::InfiniteFuture();
  int64_t sequence_ = 0;
  std::deque<SentHeartbeat> unacked_;
};

}  // namespace ringmaster::worker
