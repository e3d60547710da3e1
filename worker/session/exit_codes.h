#pragma once

namespace ringmaster::worker {

// How a worker process ends, as its supervisor (or Kubernetes, systemd, a shell) sees it.

// Left on purpose: SIGTERM or Drain, after Goodbye.
inline constexpr int kExitOk = 0;

// The flags are wrong, or name a TLS file or a device that is not there, or another process has the
// worker's name: starting again must fail the same way, the supervisor gives up.
inline constexpr int kExitUsage = 64;

// "Restart me": this process must not go on (a ring could not be abandoned in time, the device is
// in an error that only a process exit clears, the coordinator said Die, it could not start for a
// reason that may pass), and a fresh one may.
inline constexpr int kExitRestart = 85;

}  // namespace ringmaster::worker
