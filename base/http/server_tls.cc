#include "base/http/server_tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/http/pem.h"
#include "base/read_file.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

// As gRPC's, of the same files.
constexpr absl::Duration kRefresh = absl::Seconds(5);

// Null when they do not fit.
std::shared_ptr<SSL_CTX> MakeContext(const std::string& certificate_pem,
                                     const std::string& key_pem) {
  const auto certificates = CertificatesIn(certificate_pem);
  const auto key = KeyIn(key_pem);
  if (certificates.empty() || key == nullptr) return nullptr;
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return nullptr;
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  // A write goes on from where it stopped, whatever has moved meanwhile.
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  // A read ends with each message of TLS itself, such as a new key: the deadline is looked at.
  SSL_CTX_clear_mode(context.get(), SSL_MODE_AUTO_RETRY);
  // TLS 1.3 would send two all the same, for sessions that are not kept.
  SSL_CTX_set_num_tickets(context.get(), 0);
  bool loaded = SSL_CTX_use_certificate(context.get(), certificates.front().get()) == 1 &&
                SSL_CTX_use_PrivateKey(context.get(), key.get()) == 1 &&
                SSL_CTX_check_private_key(context.get()) == 1;
  for (size_t i = 1; i < certificates.size(); ++i) {
    loaded = loaded && SSL_CTX_add1_chain_cert(context.get(), certificates[i].get()) == 1;
  }
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
  ASSIGN_OR_RETURN(tls->loaded_, tls->Read(nullptr));
  tls->next_read_ = tls->now_() + kRefresh;
  return tls;
}

absl::StatusOr<std::shared_ptr<const ServerTls::Loaded>> ServerTls::Read(
    std::shared_ptr<const Loaded> before) const {
  const absl::StatusOr<std::string> certificate = ReadFile(certificate_path_);
  const absl::StatusOr<std::string> key = ReadFile(key_path_);
  for (const auto& text : {certificate, key}) {
    if (!text.ok()) return absl::InvalidArgumentError(text.status().message());
  }
  if (before != nullptr && *certificate == before->certificate && *key == before->key) {
    return before;
  }
  std::shared_ptr<SSL_CTX> context = MakeContext(*certificate, *key);
  if (context == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(certificate_path_, " and ", key_path_,
                                                   " do not hold a certificate and its key"));
  }
  return std::make_shared<const Loaded>(
      Loaded{.certificate = *certificate, .key = *key, .context = std::move(context)});
}

std::shared_ptr<SSL_CTX> ServerTls::Context() {
  std::unique_lock lock(mutex_);
  if (reading_ || now_() < next_read_) return loaded_->context;
  reading_ = true;
  const std::shared_ptr<const Loaded> before = loaded_;
  lock.unlock();
  auto read = Read(before);
  if (!read.ok()) SPDLOG_WARN("http: the certificate in use stays: {}", read.status().ToString());
  lock.lock();
  if (read.ok()) loaded_ = *std::move(read);
  next_read_ = now_() + kRefresh;
  reading_ = false;
  return loaded_->context;
}

}  // namespace ringmaster
