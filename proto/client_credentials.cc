#include "proto/client_credentials.h"

#include "base/read_file.h"
#include "base/status_macros.h"

namespace ringmaster {
namespace {

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) {
    return std::string();
  }
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return absl::InvalidArgumentError(text.status().message());
  }
  return text;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const ClientTls& tls) {
  if (tls.certificate.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key need each other");
  }
  if (tls.ca.empty()) {
    // Whoever gives a certificate does not expect plain text.
    if (!tls.certificate.empty()) {
      return absl::InvalidArgumentError("--tls-cert needs --tls-ca, the authority to trust");
    }
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions ssl;
  ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem(tls.ca));
  ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadPem(tls.certificate));
  ASSIGN_OR_RETURN(ssl.pem_private_key, ReadPem(tls.key));
  return grpc::SslCredentials(ssl);
}

}  // namespace ringmaster
