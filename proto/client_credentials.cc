#include "proto/client_credentials.h"

#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/loopback.h"
#include "base/read_file.h"
#include "base/status_macros.h"
#include "proto/rpc_status.h"

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

// The token's text as a header may carry it. What is wrong with it is told without it.
absl::StatusOr<std::string> ReadToken(const ClientToken& token) {
  std::string text = token.text;
  if (!token.file.empty()) {
    ASSIGN_OR_RETURN(text, ReadPem(token.file));
  }
  text = std::string(absl::StripAsciiWhitespace(text));
  for (const char c : text) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) text.clear();
  }
  if (text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(token.file.empty() ? "RINGMASTER_TOKEN" : token.file,
                     " does not hold one token and nothing else"));
  }
  return text;
}

class TokenPlugin : public grpc::MetadataCredentialsPlugin {
 public:
  explicit TokenPlugin(ClientToken token) : token_(std::move(token)) {}

  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    const absl::StatusOr<std::string> text = ReadToken(token_);
    if (!text.ok()) return ToGrpc(absl::UnauthenticatedError(text.status().message()));
    metadata->emplace("authorization", absl::StrCat("Bearer ", *text));
    return grpc::Status::OK;
  }
  // gRPC would print the metadata, text and all.
  grpc::string DebugString() override { return "TokenPlugin"; }

 private:
  const ClientToken token_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const ClientTls& tls) {
  grpc::SslCredentialsOptions ssl;
  ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem(tls.ca));
  ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadPem(tls.certificate));
  ASSIGN_OR_RETURN(ssl.pem_private_key, ReadPem(tls.key));
  return grpc::SslCredentials(ssl);
}

// gRPC refuses the connection itself when it leaves this machine after all.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> LocalCredentials(
    const std::string& target) {
  if (absl::StartsWith(target, "unix:")) return grpc::experimental::LocalCredentials(UDS);
  if (IsLoopback(target)) return grpc::experimental::LocalCredentials(LOCAL_TCP);
  return absl::InvalidArgumentError(
      absl::StrCat("the token would be sent to ", target,
                   " in the clear: give --tls-ca, the authority to trust"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(
    const std::string& target, const ClientTls& tls, const ClientToken& token) {
  if (tls.certificate.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key need each other");
  }
  // Whoever gives a certificate does not expect plain text.
  if (tls.ca.empty() && !tls.certificate.empty()) {
    return absl::InvalidArgumentError("--tls-cert needs --tls-ca, the authority to trust");
  }
  if (token.file.empty() && token.text.empty()) {
    if (tls.ca.empty()) return grpc::InsecureChannelCredentials();
    return TlsCredentials(tls);
  }
  RETURN_IF_ERROR(ReadToken(token).status());
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> channel,
                   tls.ca.empty() ? LocalCredentials(target) : TlsCredentials(tls));
  // A local connection counts as not secure, and may carry the token nevertheless.
  return grpc::CompositeChannelCredentials(
      channel, grpc::experimental::MetadataCredentialsFromPlugin(
                   std::make_unique<TokenPlugin>(token),
                   tls.ca.empty() ? GRPC_SECURITY_NONE : GRPC_PRIVACY_AND_INTEGRITY));
}

}  // namespace ringmaster
