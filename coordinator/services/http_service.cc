#include "coordinator/services/http_service.h"

#include "absl/strings/str_cat.h"
#include "coordinator/services/status_page.h"

namespace ringmaster::coordinator {
namespace {

// The loop turns once a second: after this long it hangs.
constexpr absl::Duration kLoopHangs = absl::Seconds(15);

constexpr char kHttp[] = "Http";

// What is asked for, as far as it is told before anything is looked up.
struct Page {
  enum Kind { kNone, kMetrics, kStatus };
  Kind kind;
  Permission permission;
};

Page PageAt(const std::string& path) {
  using v1::Token;
  if (path == "/metrics") {
    return {Page::kMetrics, {{kHttp, "GetMetrics"}, Token::VIEWER, Reach::kCluster}};
  }
  if (path == "/") return {Page::kStatus, {{kHttp, "GetStatus"}, Token::VIEWER, Reach::kCluster}};
  return {Page::kNone, {{kHttp, "Get"}, Token::VIEWER, Reach::kNothing}};
}

HttpReply Refusal(const absl::Status& status) {
  HttpReply reply = {.body = absl::StrCat(status.message(), "\n")};
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
      reply.code = 401;
      // A browser asks its user, for the first of them.
      reply.headers = {{"WWW-Authenticate", "Basic realm=\"Ringmaster: any name, and a token\""},
                       {"WWW-Authenticate", "Bearer"}};
      break;
    case absl::StatusCode::kPermissionDenied:
      reply.code = 403;
      break;
    case absl::StatusCode::kNotFound:
      reply.code = 404;
      break;
    case absl::StatusCode::kInvalidArgument:
      reply.code = 400;
      break;
    default:
      reply.code = 503;
  }
  return reply;
}

}  // namespace

HttpReply HttpService::Answer(const HttpRequest& request) {
  if (request.path == "/healthz") return Healthz();
  if (request.path == "/readyz") return Readyz();
  const Page page = PageAt(request.path);
  const CallRecord call = {.method = page.permission.method,
                           .begin = absl::Now(),
                           .peer = request.peer,
                           .resource = request.path};
  const absl::StatusOr<v1::Token> caller =
      services_.access->Admit(page.permission, request.authorization, request.path);
  if (!caller.ok()) {
    WriteDown(services_, call, caller.status());
    return Refusal(caller.status());
  }
  switch (page.kind) {
    case Page::kMetrics:
      return {.content_type = kMetricsContentType, .body = services_.metrics->Text()};
    case Page::kStatus:
      return {.content_type = "text/html; charset=utf-8",
              .body = StatusPage(*services_.loop->snapshot())};
    case Page::kNone:
      break;
  }
  return {.code = 404, .body = "no such page\n"};
}

HttpReply HttpService::Healthz() const {
  const absl::Duration silent = services_.loop->SinceLastTurn();
  if (silent < kLoopHangs) return {.body = "ok\n"};
  return {.code = 503,
          .body = absl::StrCat("the event loop has not turned for ", absl::FormatDuration(silent),
                               "\n")};
}

HttpReply HttpService::Readyz() const {
  if (draining_) return {.code = 503, .body = "draining\n"};
  return Healthz();
}

}  // namespace ringmaster::coordinator
