#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ringmaster::worker {

// Where a rank of a generation listens. As text:
// "ucx/1.13/<generation>/<rank>/<nonce>/<host>/<port>".
struct UcxAddress {
  int64_t generation = 0;
  int rank = 0;
  // Random, so that no two openings of a rank have the same address.
  uint64_t nonce = 0;
  std::string host;
  int port = 0;

  // Of UCX: "1.13".
  static std::string Version();
  std::string ToString() const;
  // InvalidArgument unless it was made by ToString; FailedPrecondition when it was made with
  // another version of UCX: its wire format is only promised within one.
  static absl::StatusOr<UcxAddress> Parse(absl::string_view text);
};

// `host` must be a numeric IPv4 or IPv6 address.
absl::StatusOr<sockaddr_storage> SocketAddress(const std::string& host, int port);
int SocketPort(const sockaddr_storage& socket);
// Whether the numeric address is this host's to itself only.
bool IsLoopback(const std::string& host);
// The network interface that has the numeric address; empty when none has.
std::string InterfaceOf(const std::string& host);

}  // namespace ringmaster::worker
