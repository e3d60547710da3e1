#include "base/http/server_tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "absl/strings/str_cat.h"
#include "base/read_file.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

// As gRPC's, of the same files.
constexpr absl::Duration kRefresh = absl::Seconds(5);

// A key with a password would be asked for at the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

std::shared_ptr<SSL_CTX> MakeContext(const std::string& certificate_path,
                                     const std::string& key_path) {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return nullptr;
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  // A write goes on from where it stopped, whatever has moved meanwhile.
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_default_passwd_cb(context.get(), NoPassword);
  const bool loaded =
      SSL_CTX_use_certificate_chain_file(context.get(), certificate_path.c_str()) == 1 &&
      SSL_CTX_use_PrivateKey_file(context.get(), key_path.c_str(), SSL_FILETYPE_PEM) == 1 &&
      SSL_CTX_check_private_key(context.get()) == 1;
  ERR_clear_error();
  return loaded ? context : nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerTls>> ServerTls::Load(std::string certificate_path,
                                                           std::string key_path,
                                                           std::function<absl::Time()> now) {
  auto tls = std::unique_ptr<ServerTls>(
      new ServerTls(std::move(certificate_path), std::move(key_path), std::move(now)));
  const std::lock_guard lock(tls->mutex_);
  RETURN_IF_ERROR(tls->Read());
  tls->next_read_ = tls->now_() + kRefresh;
  return tls;
}

absl::Status ServerTls::Read() {
  const absl::StatusOr<std::string> certificate = ReadFile(certificate_path_);
  const absl::StatusOr<std::string> key = ReadFile(key_path_);
  for (const auto& text : {certificate, key}) {
    if (!text.ok()) return absl::InvalidArgumentError(text.status().message());
  }
  if (context_ != nullptr && *certificate == certificate_ && *key == key_) return absl::OkStatus();
  std::shared_ptr<SSL_CTX> context = MakeContext(certificate_path_, key_path_);
  if (context == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(certificate_path_, " and ", key_path_,
                                                   " do not hold a certificate and its key"));
  }
  context_ = std::move(context);
  certificate_ = *certificate;
  key_ = *key;
  return absl::OkStatus();
}

std::shared_ptr<SSL_CTX> ServerTls::Context() {
  const std::lock_guard lock(mutex_);
  if (const absl::Time now = now_(); now >= next_read_) {
    next_read_ = now + kRefresh;
    if (const absl::Status read = Read(); !read.ok()) {
      SPDLOG_WARN("http: the certificate in use stays: {}", read.ToString());
    }
  }
  return context_;
}

}  // namespace ringmaster
