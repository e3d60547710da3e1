#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/credentials.h"

namespace ringmaster {

// The PEM files of the flags --tls-ca, --tls-cert and --tls-key, which whoever dials the
// coordinator has.
struct ClientTls {
  // The authority that signed the coordinator's certificate; all empty: no TLS.
  std::string ca;
  // One's own, where the coordinator asks for it.
  std::string certificate;
  std::string key;
};

// The token that the coordinator may ask for. Both empty: none.
struct ClientToken {
  // A file that holds it, read again for each call, so that it may be replaced.
  std::string file;
  // Itself; `file` goes before.
  std::string text;
};

// For `target`, "host:port" or "unix:PATH". A token is sent over TLS, and without it only over
// connections that do not leave this machine. InvalidArgument when it would, when files do not go
// together, or when one is missing or cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(
    const std::string& target, const ClientTls& tls, const ClientToken& token);

}  // namespace ringmaster
