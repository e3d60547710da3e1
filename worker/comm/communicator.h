#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/exchange/exchange.h"

namespace ringmaster::worker {

struct CommunicatorOptions {
  int64_t generation = 0;
  int rank = 0;
  int world_size = 1;
  // How long one group, or Close, may take before the ring counts as broken. In host memory it runs
  // from each wait for a group, on a device from when this rank has done its part, whether or not
  // the host asks: that memory is waited for in calls that know no deadline.
  absl::Duration hop_deadline = absl::Seconds(30);
  // The numeric address at which the other ranks reach this one, over its interface only (UCX).
  // When all are on one host, loopback.
  std::string host = "127.0.0.1";
  // CUDA device of an "nccl" communicator. Must be the device of the tensors that travel.
  int device_index = 0;
};

// All connections of one rank in one generation. A communicator is used once:
//   OpenCommunicator() -> address() goes to the coordinator -> Connect(everyone's addresses) ->
//   world() -> Close().
// Whatever fails, the first error stays: every later call returns it, and a new generation gets a
// new communicator. Errors: Unavailable (a peer is gone), DeadlineExceeded (hop or connect
// deadline; a peer is stuck), Aborted (Abort was called here), FailedPrecondition (a peer of
// another generation, or ranks that disagree about the messages), InvalidArgument (addresses that
// do not fit together).
//
// Connect, world(), Settle and Close belong to one thread at a time; Abort and AwaitReleased to
// any. The destructor aborts, waits for the release for a bounded time and never hangs.
class Communicator {
 public:
  virtual ~Communicator() = default;

  // What the other ranks need to reach this one. Opaque, printable, at most 512 bytes.
  virtual const std::string& address() const = 0;

  // Connects to all ranks; `addresses` is in rank order and holds this rank's own too. Ranks may
  // come in any order within `deadline`. Ends with one tiny exchange between all ranks that carries
  // the generation, so that OK proves the ring.
  virtual absl::Status Connect(absl::Span<const std::string> addresses,
                               absl::Duration deadline) = 0;

  // The exchange between all ranks, owned by the communicator; to be used after Connect.
  virtual attention::GroupedExchange& world() = 0;

  // Index of the CUDA device in whose memory the buffers of world() must lie, or -1: host memory.
  virtual int cuda_device() const = 0;

  // Waits for all started groups, as long as the hop deadline lets them take. OK only when the host
  // has seen that they are done, that no asynchronous error is known and that nobody aborted. A
  // step may be voted for only after that: an aborted device kernel "completes".
  virtual absl::Status Settle() = 0;

  // The orderly end, called by all ranks after their last group; returns when all have called it.
  // Afterwards a peer may go without being missed.
  virtual absl::Status Close() = 0;

  // Gives up: every pending and later call fails with Aborted and `reason`, and the peers see this
  // rank as gone. Returns at once; any thread, at any time, any number of times.
  virtual void Abort(const std::string& reason) = 0;

  // After Abort or a failure: waits until the transport touches no buffer and holds no device
  // resource any more. DeadlineExceeded means that only the end of this process helps
  // (kExitRestart).
  virtual absl::Status AwaitReleased(absl::Duration deadline) = 0;
};

// Opens rank `options.rank` of generation `options.generation` on `transport`: "ucx" (host memory)
// or "nccl" (memory of one CUDA device; needs libringmaster_cuda.so, see cuda_plugin.h).
// InvalidArgument for another transport or impossible options, Unavailable when the address cannot
// be bound, FailedPrecondition when the plugin is missing.
absl::StatusOr<std::unique_ptr<Communicator>> OpenCommunicator(const std::string& transport,
                                                               const CommunicatorOptions& options);

// The transport with the version that all ranks of a ring must share: "ucx/1.13", "nccl/2.28.9".
// Errors as OpenCommunicator.
absl::StatusOr<std::string> TransportVersion(const std::string& transport);

}  // namespace ringmaster::worker
