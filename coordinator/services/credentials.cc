#include "coordinator/services/credentials.h"

#include <arpa/inet.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/read_file.h"
#include "base/status_macros.h"

namespace ringmaster::coordinator {
namespace {

// Of a whole address: a host's name may begin with "127." as well, and a list of addresses, which
// the HTTP server would take, with a loopback one.
bool IsLoopback(const std::string& host) {
  in_addr address = {};
  return host == "localhost" || host == "[::1]" ||
         (inet_pton(AF_INET, host.c_str(), &address) == 1 && ntohl(address.s_addr) >> 24 == 127);
}

absl::StatusOr<std::string> ReadPem(absl::string_view flag, const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is missing: TLS needs certificate and key"));
  }
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok() || text->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": ", text.ok() ? path + " is empty" : text.status().message()));
  }
  return text;
}

}  // namespace

absl::Status CheckListenAddress(const std::string& flag, const std::string& address,
                                const TlsFiles& tls, bool insecure_i_understand) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": \"", address, "\" is not HOST:PORT, for example 127.0.0.1:7077"));
  }
  if (IsLoopback(address.substr(0, colon)) || !tls.certificate.empty() || insecure_i_understand) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      flag, ": ", address, " is reachable from other hosts: give --tls-cert and --tls-key, or",
      " --insecure-i-understand to let everyone who reaches it use the service"));
}

absl::StatusOr<bool> TokensRequired(const ServerOptions& options) {
  const bool loopback = IsLoopback(options.listen.substr(0, options.listen.rfind(':')));
  if (!options.require_tokens) return !loopback && !options.insecure_i_understand;
  if (loopback || !options.tls.certificate.empty()) return true;
  return absl::FailedPreconditionError(
      "--require-tokens: without --tls-cert and --tls-key, tokens would travel in the clear");
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& tls) {
  if (tls.certificate.empty() && tls.key.empty()) {
    if (!tls.client_ca.empty()) {
      return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
    }
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions options(
      tls.client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ASSIGN_OR_RETURN(pair.cert_chain, ReadPem("--tls-cert", tls.certificate));
  ASSIGN_OR_RETURN(pair.private_key, ReadPem("--tls-key", tls.key));
  options.pem_key_cert_pairs.push_back(pair);
  if (!tls.client_ca.empty()) {
    ASSIGN_OR_RETURN(options.pem_root_certs, ReadPem("--tls-client-ca", tls.client_ca));
  }
  return grpc::SslServerCredentials(options);
}

}  // namespace ringmaster::coordinator
