#include "coordinator/services/token_book.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/core/names.h"
#include "coordinator/core/times.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

// Scanners for leaked secrets look for prefixes.
constexpr absl::string_view kPrefix = "rmt_";
constexpr absl::string_view kNamePrefix = "tokens/";
constexpr size_t kIdBytes = 6;
constexpr size_t kSecretBytes = 32;
constexpr size_t kDisplayNameMax = 128;
constexpr absl::Duration kTtlMax = absl::Hours(24 * 3650);

std::string Sha256(absl::string_view text) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

absl::StatusOr<std::string> RandomHex(size_t bytes) {
  std::string random(bytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(random.data()), static_cast<int>(bytes)) != 1) {
    return absl::InternalError("no randomness for a token");
  }
  return absl::BytesToHexString(random);
}

// The name in a token's text; empty when it does not look like one.
std::string NameIn(absl::string_view text) {
  constexpr size_t kIdSize = 2 * kIdBytes;
  if (text.size() != kPrefix.size() + kIdSize + 1 + 2 * kSecretBytes ||
      !absl::StartsWith(text, kPrefix)) {
    return "";
  }
  return absl::StrCat(kNamePrefix, text.substr(kPrefix.size(), kIdSize));
}

// Of a token whose text the caller has: it is told by name.
absl::Status Ended(absl::string_view reason, const v1::Token& token, absl::string_view how) {
  return WithErrorInfo(absl::UnauthenticatedError(absl::StrCat(token.name(), how)), reason,
                       {{"caller", token.name()}});
}

absl::Time ExpiryOf(const v1::Token& token) {
  return token.has_expire_time() ? FromProto(token.expire_time()) : absl::InfiniteFuture();
}

absl::Status InForce(const v1::Token& token, absl::Time now) {
  if (token.has_revoke_time()) {
    return Ended("TOKEN_REVOKED", token, " was revoked");
  }
  if (now >= ExpiryOf(token)) {
    return Ended("TOKEN_EXPIRED", token, " has expired");
  }
  return absl::OkStatus();
}

absl::Status CheckScope(const v1::CreateTokenRequest& request) {
  if (request.scope() == v1::Token::SCOPE_UNSPECIFIED ||
      !v1::Token::Scope_IsValid(request.scope())) {
    return InvalidField("scope", "must be VIEWER, SUBMITTER, OPERATOR, ADMIN or WORKER");
  }
  if (request.project().empty()) return absl::OkStatus();
  RETURN_IF_ERROR(ParseParent("project", request.project(), /*wildcard=*/false).status());
  if (request.scope() != v1::Token::VIEWER && request.scope() != v1::Token::SUBMITTER) {
    return InvalidField("project", "is for scopes VIEWER and SUBMITTER; others are for all of it");
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const v1::CreateTokenRequest& request) {
  const std::string& name = request.display_name();
  if (name.empty() || name.size() > kDisplayNameMax ||
      std::any_of(name.begin(), name.end(), absl::ascii_iscntrl)) {
    return InvalidField("display_name",
                        absl::StrCat("must say who uses it, in 1 to ", kDisplayNameMax,
                                     " bytes without control characters"));
  }
  if (request.has_ttl()) {
    const absl::Duration ttl = FromProto(request.ttl());
    if (ttl <= absl::ZeroDuration() || ttl > kTtlMax) {
      return InvalidField("ttl", absl::StrCat("must be more than nothing and at most ",
                                              absl::FormatDuration(kTtlMax)));
    }
  }
  return CheckScope(request);
}

}  // namespace

bool IsTokenName(absl::string_view name) { return absl::StartsWith(name, kNamePrefix); }

absl::StatusOr<std::unique_ptr<TokenBook>> TokenBook::Open(std::unique_ptr<TokenStore> store,
                                                           std::function<absl::Time()> now,
                                                           size_t tokens_max) {
  auto book =
      std::unique_ptr<TokenBook>(new TokenBook(std::move(store), std::move(now), tokens_max));
  RETURN_IF_ERROR(book->Load());
  return book;
}

absl::Status TokenBook::Load() {
  ASSIGN_OR_RETURN(const auto rows, store_->Load());
  const std::lock_guard lock(mutex_);
  for (const auto& [name, value] : rows) {
    store::TokenRecord record;
    if (!record.ParseFromString(value) || record.token().name() != name ||
        record.hash().size() != SHA256_DIGEST_LENGTH) {
      return absl::DataLossError(absl::StrCat("store: the record of ", name, " is damaged"));
    }
    records_.emplace(name, std::move(record));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::CreateTokenResponse> TokenBook::Create(
    const v1::CreateTokenRequest& request,
    const std::function<absl::Status(const std::string& text)>& keep) {
  RETURN_IF_ERROR(CheckRequest(request));
  RETURN_IF_ERROR(MakeRoom());
  ASSIGN_OR_RETURN(const std::string id, RandomHex(kIdBytes));
  ASSIGN_OR_RETURN(const std::string secret, RandomHex(kSecretBytes));
  v1::CreateTokenResponse response;
  response.set_secret(absl::StrCat(kPrefix, id, "_", secret));
  v1::Token* token = response.mutable_token();
  token->set_name(absl::StrCat(kNamePrefix, id));
  token->set_display_name(request.display_name());
  token->set_scope(request.scope());
  token->set_project(request.project());
  const absl::Time now = now_();
  *token->mutable_create_time() = ToProto(now);
  if (request.has_ttl()) *token->mutable_expire_time() = ToProto(now + FromProto(request.ttl()));
  token->set_last_four(secret.substr(secret.size() - 4));
  store::TokenRecord record;
  *record.mutable_token() = *token;
  record.set_hash(Sha256(response.secret()));
  if (keep) RETURN_IF_ERROR(keep(response.secret()));
  RETURN_IF_ERROR(Put(std::move(record), &TokenStore::Put));
  return response;
}

absl::Status TokenBook::MakeRoom() {
  const absl::Time now = now_();
  std::string oldest;
  {
    const std::lock_guard lock(mutex_);
    if (records_.size() < tokens_max_) return absl::OkStatus();
    absl::Time since = absl::InfiniteFuture();
    for (const auto& [name, record] : records_) {
      const absl::Time created = FromProto(record.token().create_time());
      if (created < since && !InForce(record.token(), now).ok()) {
        oldest = name;
        since = created;
      }
    }
  }
  if (oldest.empty()) {
    return ResourceExhausted("TOO_MANY_TOKENS", static_cast<int64_t>(tokens_max_),
                             absl::StrCat(tokens_max_, " tokens are in force: revoke some"));
  }
  RETURN_IF_ERROR(store_->Erase(oldest));
  const std::lock_guard lock(mutex_);
  records_.erase(oldest);
  return absl::OkStatus();
}

absl::Status TokenBook::Put(store::TokenRecord record,
                            absl::Status (TokenStore::*put)(const std::string&,
                                                            const std::string&)) {
  const std::string name = record.token().name();
  RETURN_IF_ERROR((store_.get()->*put)(name, record.SerializeAsString()));
  const std::lock_guard lock(mutex_);
  records_[name] = std::move(record);
  return absl::OkStatus();
}

absl::StatusOr<v1::Token> TokenBook::Revoke(const std::string& name) {
  store::TokenRecord record;
  {
    const std::lock_guard lock(mutex_);
    const auto found = records_.find(name);
    if (found == records_.end()) return NotFound("token", name);
    record = found->second;
  }
  v1::Token* token = record.mutable_token();
  if (token->has_revoke_time()) return *token;
  *token->mutable_revoke_time() = ToProto(now_());
  const v1::Token revoked = *token;
  RETURN_IF_ERROR(Put(std::move(record), &TokenStore::PutFromReserve));
  return revoked;
}

v1::ListTokensResponse TokenBook::List() const {
  v1::ListTokensResponse response;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, record] : records_) *response.add_tokens() = record.token();
  }
  std::stable_sort(response.mutable_tokens()->begin(), response.mutable_tokens()->end(),
                   [](const v1::Token& a, const v1::Token& b) {
                     return FromProto(a.create_time()) < FromProto(b.create_time());
                   });
  return response;
}

absl::StatusOr<v1::Token> TokenBook::Find(absl::string_view text) const {
  // Of any text, so that the time tells nothing of what is known.
  const std::string hash = Sha256(text);
  const std::string name = NameIn(text);
  const absl::Time now = now_();
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(name);
  if (found == records_.end() ||
      CRYPTO_memcmp(found->second.hash().data(), hash.data(), hash.size()) != 0) {
    return WithErrorInfo(absl::UnauthenticatedError("the token is not one of this coordinator's"),
                         "TOKEN_INVALID");
  }
  const v1::Token& token = found->second.token();
  RETURN_IF_ERROR(InForce(token, now));
  return token;
}

absl::Status TokenBook::CheckInForce(const std::string& name) const {
  const absl::Time now = now_();
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(name);
  if (found == records_.end()) {
    return WithErrorInfo(absl::UnauthenticatedError(absl::StrCat(name, " was revoked")),
                         "TOKEN_REVOKED");
  }
  return InForce(found->second.token(), now);
}

absl::Time TokenBook::ExpiryOf(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(name);
  return found == records_.end() ? absl::InfiniteFuture()
                                 : coordinator::ExpiryOf(found->second.token());
}

bool TokenBook::HasAdmin() const {
  const absl::Time now = now_();
  const std::lock_guard lock(mutex_);
  return std::any_of(records_.begin(), records_.end(), [&](const auto& named) {
    const v1::Token& token = named.second.token();
    return token.scope() == v1::Token::ADMIN && InForce(token, now).ok();
  });
}

}  // namespace ringmaster::coordinator
