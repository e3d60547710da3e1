#pragma once

#include <memory>
#include <string>

#include "worker/client/coordinator_client.h"
#include "worker/driver/event_queue.h"
#include "worker/driver/ring_run.h"
#include "worker/session/session_core.h"

namespace ringmaster::worker {

struct SessionLoopOptions {
  SessionIdentity identity;
  SessionLimits limits;
  // "cpu" or "cuda".
  std::string device = "cpu";
  // post is set by the loop.
  RingContext ring;
};

// How the process is to end, and why.
struct SessionEnd {
  int code = 0;
  std::string reason;
};

// The worker's life: runs the session core on the calling thread, fed by the stream, the rings and
// `queue` (where a signal handler's thread may push StopRequested), and does what it says. A
// process leaves by _exit afterwards: a thread may be stuck in a transport, and that may be why the
// code was chosen.
class SessionLoop {
 public:
  SessionLoop(ChannelFactory channels, EventQueue* queue, SessionLoopOptions options);
  // Cancels what runs and joins all threads.
  ~SessionLoop();

  SessionEnd Run();

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace ringmaster::worker
