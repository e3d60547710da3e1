#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/services/server.h"
#include "grpcpp/security/server_credentials.h"

namespace ringmaster::coordinator {

// Whether `address` ("host:port") may be listened on: loopback always, another one only with TLS
// files or when the user insists. Errors name `flag`: InvalidArgument (no address),
// FailedPrecondition.
absl::Status CheckListenAddress(const std::string& flag, const std::string& address,
                                const TlsFiles& tls, bool insecure_i_understand);

// Whether callers must show tokens. FailedPrecondition when they would travel in the clear between
// hosts.
absl::StatusOr<bool> TokensRequired(const ServerOptions& options);

// Files that are replaced are taken up within seconds, for new connections. InvalidArgument when
// one is missing, cannot be read or does not hold what it should.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& tls);

}  // namespace ringmaster::coordinator
