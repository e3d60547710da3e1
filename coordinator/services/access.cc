#include "coordinator/services/access.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr absl::string_view kProjects = "projects/";

absl::Status Denied(absl::string_view reason, const v1::Token& token, absl::string_view message) {
  return WithErrorInfo(absl::PermissionDeniedError(message), reason, {{"token", token.name()}});
}

std::string ScopeName(v1::Token::Scope scope) {
  return absl::AsciiStrToLower(v1::Token::Scope_Name(scope));
}

// The text of `authorization: Bearer TEXT`, the scheme's case aside.
absl::StatusOr<absl::string_view> BearerText(const grpc::ServerContextBase& context) {
  const auto& metadata = context.client_metadata();
  const auto [begin, end] = metadata.equal_range("authorization");
  constexpr absl::string_view kScheme = "bearer ";
  const absl::string_view value =
      begin == end ? "" : absl::string_view(begin->second.data(), begin->second.size());
  if (begin == end || std::next(begin) != end || !absl::StartsWithIgnoreCase(value, kScheme)) {
    return WithErrorInfo(
        absl::UnauthenticatedError("a token is needed: authorization: Bearer TOKEN"),
        "TOKEN_MISSING");
  }
  return absl::StripAsciiWhitespace(value.substr(kScheme.size()));
}

absl::Status CheckReach(const Permission& permission, const v1::Token& token,
                        absl::string_view resource) {
  const auto& [method, scope, reach] = permission;
  if (!Includes(token.scope(), scope)) {
    return Denied("SCOPE_TOO_NARROW", token,
                  absl::StrCat(method.name, " takes a token of scope ", ScopeName(scope), ", ",
                               token.name(), " has ", ScopeName(token.scope())));
  }
  if (token.project().empty() || reach == Reach::kNothing ||
      (reach == Reach::kProject && ProjectIn(resource) == ProjectIn(token.project()))) {
    return absl::OkStatus();
  }
  return Denied("OTHER_PROJECT", token,
                absl::StrCat(token.name(), " is good for ", token.project(), " only"));
}

}  // namespace

Access::Access(bool required, std::unique_ptr<TokenBook> book, std::function<absl::Time()> now)
    : required_(required), book_(std::move(book)), now_(std::move(now)), thread_(1) {}

absl::StatusOr<std::string> Access::Admit(const Method& method,
                                          const grpc::ServerContextBase& context,
                                          absl::string_view resource) const {
  if (!required_) return "";
  ASSIGN_OR_RETURN(const absl::string_view text, BearerText(context));
  ASSIGN_OR_RETURN(const v1::Token token, book_->Find(text));
  const Permission* const permission = FindPermission(method);
  if (permission == nullptr) {
    return Denied("SCOPE_TOO_NARROW", token, absl::StrCat("nobody may call ", method.name));
  }
  RETURN_IF_ERROR(CheckReach(*permission, token, resource));
  return token.name();
}

uint64_t Access::Hold(const std::string& token, std::function<void(const absl::Status&)> end) {
  if (token.empty()) return 0;
  uint64_t hold = 0;
  {
    const std::lock_guard lock(mutex_);
    hold = next_hold_++;
    held_.emplace(hold, Held{.token = token, .end = end});
    EndDeadAt(book_->ExpiryOf(token));
  }
  // It may have been revoked after the call was admitted and before it was held.
  if (const absl::Status status = book_->CheckInForce(token); !status.ok()) end(status);
  return hold;
}

void Access::Release(uint64_t hold) {
  const std::lock_guard lock(mutex_);
  held_.erase(hold);
}

void Access::EndDeadAt(absl::Time time) {
  if (time >= next_end_) return;
  next_end_ = time;
  // A little later, so that the token has expired by then.
  thread_.PostAfter(std::max(time - now_(), absl::ZeroDuration()) + absl::Milliseconds(1),
                    [this] { EndDead(); });
}

void Access::EndDead() {
  std::vector<std::pair<std::function<void(const absl::Status&)>, absl::Status>> dead;
  {
    const std::lock_guard lock(mutex_);
    next_end_ = absl::InfiniteFuture();
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [hold, held] : held_) {
      absl::Status status = book_->CheckInForce(held.token);
      if (status.ok()) {
        next = std::min(next, book_->ExpiryOf(held.token));
      } else {
        dead.emplace_back(held.end, std::move(status));
      }
    }
    EndDeadAt(next);
  }
  // Without the lock: a stream that ends releases its hold.
  for (const auto& [end, status] : dead) end(status);
}

std::string ProjectIn(absl::string_view name) {
  if (!absl::ConsumePrefix(&name, kProjects)) return "";
  return std::string(name.substr(0, name.find('/')));
}

}  // namespace ringmaster::coordinator
