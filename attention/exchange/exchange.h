#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace ringmaster::attention {

// An opaque cudaStream_t for device memory; null for host memory.
using StreamHandle = void*;

// One message of a grouped exchange. `peer` is the rank in this exchange's group, never the
// caller's own. `data` is borrowed until the ticket has been waited for; it lies in host memory for
// UCX and in-process transports and in device memory for NCCL. Zero bytes are allowed and send
// nothing.
struct SendBuffer {
  int peer = 0;
  const void* data = nullptr;
  size_t bytes = 0;
};
struct ReceiveBuffer {
  int peer = 0;
  void* data = nullptr;
  size_t bytes = 0;
};

// Names one started group; valid until waited for, or until the exchange is aborted.
struct Ticket {
  uint64_t id = 0;
};

// The seam between attention and the transports: the ranks that share one sequence swap rows by
// *grouped exchanges*. worker/comm implements it over NCCL (device memory), UCX (host memory) and
// in one process (tests and tools).
//
// Every rank of a pair must name the same byte counts in the same order for that pair; messages of
// one pair arrive in the order in which they were started, whatever the arrival of other pairs.
// Groups of all ranks need not correspond.
//
// One thread at a time may call Start and Wait (the trainer thread or autograd's). Abort may be
// called from any thread at any moment, any number of times. After a failure or an abort every call
// returns that first error; the object is then of no use and its owner forms a new one under a new
// generation. A failed Wait leaves the receive buffers with unspecified content and says
// Unavailable (peer lost), DeadlineExceeded (hop deadline), or Aborted (Abort was called).
class GroupedExchange {
 public:
  virtual ~GroupedExchange() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts all messages as one group and returns at once. Work already enqueued on `producer`
  // happens before the group reads or writes the buffers.
  virtual absl::StatusOr<Ticket> Start(absl::Span<const SendBuffer> sends,
                                       absl::Span<const ReceiveBuffer> receives,
                                       StreamHandle producer) = 0;

  // Host transports: blocks until the group is done, at most for the hop deadline. Device
  // transports: makes `consumer` wait for the group and returns; whether it truly arrived is known
  // only after the step's vote.
  virtual absl::Status Wait(Ticket ticket, StreamHandle consumer) = 0;

  // Makes every pending and later call fail with Aborted and `reason`.
  virtual void Abort(const std::string& reason) = 0;

  // Payload bytes handed to Start as sends, since construction. Compared with the plan's count by
  // tests and the demo.
  virtual uint64_t sent_bytes() const = 0;
};

}  // namespace ringmaster::attention
