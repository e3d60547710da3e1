#pragma once

#include <string>

#include "absl/time/time.h"
#include "worker/client/coordinator_client.h"
#include "worker/driver/hardware.h"
#include "worker/supervise/supervisor.h"

namespace ringmaster::worker {

// What the flags of ringmaster-worker say.
struct WorkerOptions {
  CoordinatorAddress coordinator{.target = "127.0.0.1:7077"};
  // Empty: the host's name, followed by the device when the flag names a GPU: "host-cuda:1" becomes
  // "host-cuda1".
  std::string worker_id;
  // No flag: random id of the supervisor whose children run; empty: none.
  std::string supervisor;
  HardwareOptions hardware;
  // Numeric address at which other workers reach this one; empty: the one that leads to the
  // coordinator.
  std::string advertise_host;
  // Jobs' directories must lie below it; empty: anywhere.
  std::string shared_directory;
  // Empty: no endpoint.
  std::string http_listen;
  // Gets the HTTP address as its one line, once it listens.
  std::string address_file;
};

// The worker: looks at the machine, dials the coordinator, works until told to leave. Returns only
// when it cannot start, with a log line: kExitUsage, or kExitRestart when the reason may pass. Else
// the process ends in here.
int RunWorker(const WorkerOptions& options, const std::string& incarnation);

// For the supervisor: tells the coordinator how the worker ended, trying for up to `patience`.
void ReportExit(const WorkerOptions& options, const ChildExit& exit, absl::Duration patience);

// "workers/{id}"; depends on nothing but the options and the host's name, so that it outlives the
// process.
std::string WorkerName(const WorkerOptions& options);

}  // namespace ringmaster::worker
