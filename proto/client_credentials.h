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

// InvalidArgument when files do not go together, or one is missing or cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const ClientTls& tls);

}  // namespace ringmaster
