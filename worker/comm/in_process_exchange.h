#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "attention/exchange/exchange.h"
#include "worker/comm/communicator.h"

namespace ringmaster::worker {

// Copies within the memory that the ranks share. Called from any rank's thread, without locks held.
using CopyBytes = void (*)(void* to, const void* from, size_t bytes,
                           attention::StreamHandle stream);

// The world of ranks that live as threads of one process: for tests and tools. Same contract,
// errors and accounting as the real transports. Host memory by default; with another CopyBytes and
// device the ranks may swap device memory, when all of them work on one stream. Thread-safe.
// Communicators keep what they need alive: the hub may go first.
class InProcessHub {
 public:
  InProcessHub();
  InProcessHub(CopyBytes copy, int cuda_device);
  ~InProcessHub();

  // Opens one rank; ranks of one generation find each other in Connect. FailedPrecondition when
  // that rank of that generation is open already or when another rank of it was opened with another
  // world size.
  absl::StatusOr<std::unique_ptr<Communicator>> Open(const CommunicatorOptions& options);

  // What a kill -9 of that rank's process does: its peers' calls fail with Unavailable, its own
  // too.
  void Kill(int64_t generation, int rank);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// `size` connected ranks of generation 1, element r being rank r.
std::vector<std::unique_ptr<Communicator>> ConnectInProcess(
    int size, absl::Duration hop_deadline = absl::Seconds(30));
std::vector<std::unique_ptr<Communicator>> ConnectInProcess(int size, absl::Duration hop_deadline,
                                                            CopyBytes copy, int cuda_device);

}  // namespace ringmaster::worker
