#include "coordinator/services/credentials.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/http/pem.h"
#include "base/loopback.h"
#include "base/read_file.h"
#include "base/status_macros.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace ringmaster::coordinator {
namespace {

// How soon files that were replaced are taken up.
constexpr unsigned int kRefreshSeconds = 5;

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
  if (IsLoopback(address) || !tls.certificate.empty() || insecure_i_understand) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      flag, ": ", address, " is reachable from other hosts: give --tls-cert and --tls-key, or",
      " --insecure-i-understand to let everyone who reaches it use the service"));
}

absl::StatusOr<bool> TokensRequired(const ServerOptions& options) {
  const bool loopback = IsLoopback(options.listen) &&
                        (options.http_listen.empty() || IsLoopback(options.http_listen));
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
  ASSIGN_OR_RETURN(const std::string certificate, ReadPem("--tls-cert", tls.certificate));
  ASSIGN_OR_RETURN(const std::string key, ReadPem("--tls-key", tls.key));
  if (!IsKeyOf(certificate, key)) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key do not hold a certificate and its key");
  }
  // gRPC tells of bad files in its log only; those above are looked at for that.
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          tls.key, tls.certificate, tls.client_ca, kRefreshSeconds));
  options.watch_identity_key_cert_pairs();
  if (!tls.client_ca.empty()) {
    ASSIGN_OR_RETURN(const std::string authority, ReadPem("--tls-client-ca", tls.client_ca));
    if (CertificatesIn(authority).empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tls-client-ca: ", tls.client_ca, " does not hold a certificate"));
    }
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace ringmaster::coordinator
