#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/exchange/exchange.h"
#include "tests/worker/comm/rank_harness.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// A deadline that nothing is meant to reach, and one that is meant to pass.
inline constexpr absl::Duration kLong = absl::Seconds(40);
inline constexpr absl::Duration kShort = absl::Milliseconds(400);

// Messages of a group with their memory; the content tells them apart.
class Group {
 public:
  explicit Group(const Rank& rank) : rank_(rank) {}

  void Send(int peer, int sequence, size_t bytes);
  void Receive(int peer, int sequence, size_t bytes);
  absl::Status Start(Communicator& ring);
  absl::Status Wait(Communicator& ring) { return ring.world().Wait(ticket_, nullptr); }
  // Blocks the host as a copy from the device does that is queued behind the group.
  void AwaitDevice() const { static_cast<void>(expected_[0].buffer.Read()); }
  // Whether what came is what was sent.
  absl::Status Check() const;
  // All of it; a device transport knows the outcome only after Settle.
  absl::Status Run(Communicator& ring);

 private:
  struct Expected {
    Buffer buffer;
    std::vector<unsigned char> content;
  };
  const Rank& rank_;
  std::vector<Buffer> buffers_;
  std::vector<attention::SendBuffer> sends_;
  std::vector<attention::ReceiveBuffer> receives_;
  std::vector<Expected> expected_;
  attention::Ticket ticket_;
};

// Every rank sends to the next one.
absl::Status AroundTheRing(Rank& rank, Communicator& ring, int sequence, size_t bytes);

absl::Status ExpectCode(const absl::Status& status, absl::StatusCode code);
// All later calls tell the first error; the rank's memory is its own again.
absl::Status ExpectUseless(Communicator& ring, absl::StatusCode code);

}  // namespace ringmaster::worker
