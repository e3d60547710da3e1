#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "ringmaster/v1/cluster_service.pb.h"

namespace ringmaster::worker {

struct HardwareOptions {
  // "auto", "cpu", "cuda" or "cuda:N".
  std::string device = "auto";
  // 0: as many CPUs as this process may use.
  int threads = 0;
  // Overrides; empty: found out.
  std::string host;
  std::string zone;
  std::string link_group;
};

struct DeviceChoice {
  // "cpu" or "cuda".
  std::string device;
  // Of the device among those that this process sees: it is made to see only the chosen one.
  int index = 0;
  // What is reported to the coordinator.
  v1::Hardware hardware;
  // Why this device, for the log.
  std::string reason;
};

std::string HostName();

// Looks at the machine. "auto" is the CPU where there is no device, no driver, or no
// usable libringmaster_cuda.so. InvalidArgument for an unknown device, FailedPrecondition when
// "cuda" was asked for and is not there, with the reason; any other error is the driver's, and may
// pass.
absl::StatusOr<DeviceChoice> ChooseDevice(const HardwareOptions& options);

// The numeric address of the interface that leads to `coordinator` ("host:port"), where peers reach
// this worker too; loopback for a Unix socket. Unavailable when its name is not resolved, or there
// is no such route; waits as long as the resolver does.
absl::StatusOr<std::string> RouteAddress(const std::string& coordinator);

}  // namespace ringmaster::worker
