#include "coordinator/services/access.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "grpc/grpc_security_constants.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr absl::string_view kProjects = "projects/";
constexpr absl::string_view kWorkerPath = "/ringmaster/worker";
// So far ahead are streams looked at for tokens that expire; so work that waits for its time stays
// little, however long tokens last, and a machine that was suspended finds soon which have expired.
constexpr absl::Duration kLookAhead = absl::Minutes(1);

absl::Status Denied(absl::string_view reason, const v1::Token& caller, absl::string_view message) {
  return WithErrorInfo(absl::PermissionDeniedError(message), reason, {{"caller", caller.name()}});
}

std::string ScopeName(v1::Token::Scope scope) {
  return absl::AsciiStrToLower(v1::Token::Scope_Name(scope));
}

absl::Status TokenMissing() {
  return WithErrorInfo(absl::UnauthenticatedError("a token is needed: authorization: Bearer TOKEN"),
                       "TOKEN_MISSING");
}

// The token in "Bearer TOKEN"; nothing when it is of another scheme. The scheme's case does not
// count.
std::optional<absl::string_view> BearerText(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return std::nullopt;
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

// The password in "Basic BASE64(USER:PASSWORD)".
std::optional<std::string> BasicPassword(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "basic ";
  std::string pair;
  if (!absl::StartsWithIgnoreCase(authorization, kScheme) ||
      !absl::Base64Unescape(authorization.substr(kScheme.size()), &pair)) {
    return std::nullopt;
  }
  const size_t colon = pair.find(':');
  if (colon == std::string::npos) return std::nullopt;
  return pair.substr(colon + 1);
}

// The one value of the metadata of this name; empty when there is none, or more.
absl::string_view OnlyValue(const grpc::ServerContextBase& context, const char* name) {
  const auto [begin, end] = context.client_metadata().equal_range(name);
  if (begin == end || std::next(begin) != end) return "";
  return {begin->second.data(), begin->second.size()};
}

absl::Status CheckReach(const Permission& permission, const v1::Token& caller,
                        absl::string_view resource) {
  const auto& [method, scope, reach] = permission;
  if (!Includes(caller.scope(), scope)) {
    return Denied("SCOPE_TOO_NARROW", caller,
                  absl::StrCat(method.name, " takes a token of scope ", ScopeName(scope), ", ",
                               caller.name(), " has ", ScopeName(caller.scope())));
  }
  if (caller.project().empty() || reach == Reach::kNothing ||
      (reach == Reach::kProject && ProjectIn(resource) == ProjectIn(caller.project()))) {
    return absl::OkStatus();
  }
  return Denied("OTHER_PROJECT", caller,
                absl::StrCat(caller.name(), " is good for ", caller.project(), " only"));
}

// Whom the certificate of --tls-client-ca says that the caller is, when that is a worker:
// "spiffe://{any domain}/ringmaster/worker". Empty otherwise, and without TLS.
std::string WorkerInCertificate(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr) return "";
  for (const grpc::string_ref& value : peer->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)) {
    const absl::string_view uri(value.data(), value.size());
    absl::string_view rest = uri;
    if (absl::ConsumePrefix(&rest, "spiffe://") &&
        rest.substr(std::min(rest.find('/'), rest.size())) == kWorkerPath) {
      return std::string(uri);
    }
  }
  return "";
}

}  // namespace

Access::Access(bool required, std::unique_ptr<TokenBook> book, std::function<absl::Time()> now)
    : required_(required), book_(std::move(book)), now_(std::move(now)), thread_(1) {}

absl::StatusOr<v1::Token> Access::Caller(const grpc::ServerContextBase& context) const {
  if (context.client_metadata().count("authorization") == 0) {
    v1::Token worker;
    worker.set_name(WorkerInCertificate(context));
    worker.set_scope(v1::Token::WORKER);
    if (!worker.name().empty()) return worker;
  }
  const auto text = BearerText(OnlyValue(context, "authorization"));
  if (!text.has_value()) return TokenMissing();
  return book_->Find(*text);
}

absl::StatusOr<std::string> Access::Admit(const Method& method,
                                          const grpc::ServerContextBase& context,
                                          absl::string_view resource) const {
  if (!required_) return "";
  ASSIGN_OR_RETURN(const v1::Token caller, Caller(context));
  const Permission* const permission = FindPermission(method);
  if (permission == nullptr) {
    return Denied("SCOPE_TOO_NARROW", caller, absl::StrCat("nobody may call ", method.name));
  }
  RETURN_IF_ERROR(CheckReach(*permission, caller, resource));
  return caller.name();
}

absl::StatusOr<v1::Token> Access::Admit(const Permission& permission,
                                        absl::string_view authorization,
                                        absl::string_view resource) const {
  if (!required_) return v1::Token();
  std::optional<std::string> text = BasicPassword(authorization);
  if (const auto bearer = BearerText(authorization)) text = std::string(*bearer);
  if (!text.has_value()) return TokenMissing();
  ASSIGN_OR_RETURN(const v1::Token caller, book_->Find(*text));
  RETURN_IF_ERROR(CheckReach(permission, caller, resource));
  return caller;
}

absl::Status Access::CheckInForce(const std::string& caller) const {
  return IsTokenName(caller) ? book_->CheckInForce(caller) : absl::OkStatus();
}

absl::StatusOr<v1::CreateTokenResponse> Access::Make(const v1::CreateTokenRequest& request) {
  // It would be anybody's, and in force still when tokens are asked for one day.
  if (!required_ && request.scope() == v1::Token::ADMIN) {
    return WithErrorInfo(
        absl::FailedPreconditionError("this coordinator asks for no tokens, so that anybody could "
                                      "become an administrator: start it with --require-tokens, "
                                      "the first administrator's is then in its data directory"),
        "TOKENS_NOT_REQUIRED");
  }
  return book_->Create(request);
}

uint64_t Access::Hold(const std::string& caller, std::function<void(const absl::Status&)> end) {
  if (!IsTokenName(caller)) return 0;
  uint64_t hold = 0;
  {
    const std::lock_guard lock(mutex_);
    hold = next_hold_++;
    held_.emplace(hold, Held{.caller = caller, .end = end});
    const absl::Time expiry = book_->ExpiryOf(caller);
    if (expiry != absl::InfiniteFuture()) EndDeadAt(expiry);
  }
  // It may have been revoked after the call was admitted and before it was held.
  if (const absl::Status status = book_->CheckInForce(caller); !status.ok()) end(status);
  return hold;
}

void Access::Release(uint64_t hold) {
  const std::lock_guard lock(mutex_);
  held_.erase(hold);
}

void Access::EndDeadAt(absl::Time time) {
  const absl::Time now = now_();
  time = std::min(time, now + kLookAhead);
  if (time >= next_end_) return;
  next_end_ = time;
  // A little later, so that the token has expired by then.
  thread_.PostAfter(std::max(time - now, absl::ZeroDuration()) + absl::Milliseconds(1),
                    [this, time] { OnTime(time); });
}

void Access::OnTime(absl::Time time) {
  {
    const std::lock_guard lock(mutex_);
    // An earlier time has come between, and told of the next one.
    if (time != next_end_) return;
    next_end_ = absl::InfiniteFuture();
  }
  EndDead();
}

void Access::EndDead() {
  std::vector<std::pair<std::function<void(const absl::Status&)>, absl::Status>> dead;
  {
    const std::lock_guard lock(mutex_);
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [hold, held] : held_) {
      absl::Status status = book_->CheckInForce(held.caller);
      if (status.ok()) {
        next = std::min(next, book_->ExpiryOf(held.caller));
      } else {
        dead.emplace_back(held.end, std::move(status));
      }
    }
    if (next != absl::InfiniteFuture()) EndDeadAt(next);
  }
  // Without the lock: a stream that ends releases its hold.
  for (const auto& [end, status] : dead) end(status);
}

std::string ProjectIn(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, kProjects)) return "";
  return std::string(name.substr(0, name.find('/')));
}

}  // namespace ringmaster::coordinator
