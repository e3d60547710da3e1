#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "absl/time/time.h"

namespace ringmaster::worker {

// How a worker process ended, as its parent saw it.
struct ChildExit {
  // 32 hexadecimal digits: the one given to `run`.
  std::string incarnation;
  // Exactly one is meant: `signal` when it is not 0, else `exit_code`.
  int signal = 0;
  int exit_code = 0;
  // SteadyNow.
  absl::Time time;
};

struct SupervisorOptions {
  // The worker itself, in a child process; its return value is the exit code. Called after fork,
  // without exec: libraries are loaded and relocated already, so that a restart takes milliseconds.
  std::function<int(const std::string& incarnation)> run;
  // Tells the coordinator; in a process of its own, so that the supervisor never starts a thread
  // and may always fork. It should keep trying for a while and return.
  std::function<void(const ChildExit& exit)> report;
  // How long the next start waits for the report to arrive before it.
  absl::Duration report_first = absl::Milliseconds(100);
  // A child that ends sooner after its start counts as a rapid failure. The first
  // `rapid_failures_free` of them in a row cost nothing, then the pause before a restart doubles
  // from `first_pause` to `longest_pause`.
  absl::Duration rapid = absl::Seconds(2);
  int rapid_failures_free = 3;
  absl::Duration first_pause = absl::Milliseconds(100);
  absl::Duration longest_pause = absl::Seconds(10);
};

// Runs a worker for ever: starts it, reports how it ended, starts it again. Ends only when the
// child left on purpose (kExitOk) or cannot run at all (kExitUsage), and returns that code; after
// SIGTERM, SIGINT or SIGHUP, which it passes on as SIGTERM, it returns the child's code, or 128 +
// signal; a SIGINT or SIGHUP that was ignored when it began stays ignored. Reaps orphans too, so it
// may be PID 1. If the supervisor dies, the kernel kills the child.
//
// REQUIRES: the process has one thread, and no thread-starting library (gRPC, OpenMP) was used yet.
int Supervise(const SupervisorOptions& options);

// 32 random hexadecimal digits, from the kernel (never a generator that fork would copy).
std::string NewIncarnation();

}  // namespace ringmaster::worker
