#pragma once

#include <string>

#include "absl/status/status.h"
#include "ringmaster/v1/cluster_service.pb.h"

namespace ringmaster::worker {

// Who this process is; fixed for its life.
struct SessionIdentity {
  // "workers/{id}".
  std::string worker;
  // 32 hexadecimal digits.
  std::string incarnation;
  // Random id of the supervisor whose child this is, empty when there is none.
  std::string supervisor;
  v1::Hardware hardware;
  std::string version;
  // "host:port", empty when off.
  std::string metrics_address;

  absl::Status Validate() const;
};

}  // namespace ringmaster::worker
