#include "coordinator/services/http_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/loopback.h"
#include "coordinator/core/names.h"
#include "coordinator/page/page_files.h"

namespace ringmaster::coordinator {
namespace {

// The loop turns once a second: after this long it hangs.
constexpr absl::Duration kLoopHangs = absl::Seconds(15);

constexpr char kHttp[] = "Http";

// What is asked for, as far as that is known before anything is looked up.
struct Target {
  enum Kind { kNone, kMetrics, kFile, kOverview, kJobs, kJob, kWorkers };
  Kind kind = kNone;
  Permission permission;
  // What it is about: a project or a job; empty where the caller's token decides.
  std::string resource;
};

std::string Parameter(const HttpRequest& request, const char* name) {
  const auto found = request.parameters.find(name);
  return found == request.parameters.end() ? "" : found->second;
}

Permission Viewers(const char* method, Reach reach) {
  return {{kHttp, method}, v1::Token::VIEWER, reach};
}

// Of "/jobs/{project}/{job}".
std::string JobNameIn(absl::string_view path) {
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '/');
  return parts.size() == 4 ? FormatJobName(parts[2], parts[3]) : "";
}

Target TargetOf(const HttpRequest& request) {
  const std::string& path = request.path;
  if (path == "/metrics") return {Target::kMetrics, Viewers("GetMetrics", Reach::kCluster)};
  if (path == "/workers") return {Target::kWorkers, Viewers("GetWorkers", Reach::kCluster)};
  if (path == "/page.css" || path == "/page.js") {
    return {Target::kFile, Viewers("GetFile", Reach::kNothing)};
  }
  if (const std::string job = JobNameIn(path); absl::StartsWith(path, "/jobs/") && !job.empty()) {
    return {Target::kJob, Viewers("GetJob", Reach::kProject), job};
  }
  if (path == "/" || path == "/jobs") {
    const std::string project = Parameter(request, "project");
    const bool named = !project.empty();
    return {
        path == "/" ? Target::kOverview : Target::kJobs,
        Viewers(path == "/" ? "GetOverview" : "GetJobs", named ? Reach::kProject : Reach::kNothing),
        named ? FormatProjectName(project) : ""};
  }
  return {Target::kNone, Viewers("Get", Reach::kNothing)};
}

HttpReply PageReply(std::string html) {
  return {.content_type = "text/html; charset=utf-8",
          .body = std::move(html),
          // Nothing but our own two files, and the page's refresh. What a name might smuggle in
          // would not run.
          .headers = {{"Content-Security-Policy",
                       "default-src 'none'; style-src 'self'; script-src 'self'; "
                       "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                       "frame-ancestors 'none'"},
                      {"Cross-Origin-Resource-Policy", "same-origin"},
                      {"Referrer-Policy", "no-referrer"}}};
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

HttpReply HttpService::Answer(const HttpRequest& request) const {
  if (request.path == "/healthz") return Healthz();
  if (request.path == "/readyz") return Readyz();
  if (local_names_only_ && !IsLoopback(request.host)) {
    return {.code = 403,
            .body =
                "ask for it at 127.0.0.1 or localhost, or have the coordinator ask for tokens "
                "(--require-tokens)\n"};
  }
  const Target target = TargetOf(request);
  const absl::StatusOr<v1::Token> caller =
      services_.access->Admit(target.permission, request.authorization, target.resource);
  if (!caller.ok()) {
    WriteDown(services_,
              {.method = target.permission.method,
               .begin = absl::Now(),
               .peer = request.peer,
               .resource = request.path},
              caller.status());
    return Refusal(caller.status());
  }
  if (target.kind == Target::kMetrics) {
    return {.content_type = kMetricsContentType, .body = services_.metrics->Text()};
  }
  if (target.kind == Target::kFile) {
    const bool script = request.path == "/page.js";
    return {.content_type = script ? "text/javascript; charset=utf-8" : "text/css; charset=utf-8",
            .body = script ? kPageJs : kPageCss};
  }
  // Whoever is bound to a project sees that.
  std::string project =
      target.resource.empty() ? caller->project() : FormatProjectName(ProjectIn(target.resource));
  // As lists have it: of all projects.
  if (project == FormatProjectName("-")) project.clear();
  const std::string page_token = Parameter(request, "page");
  absl::StatusOr<std::string> page = absl::NotFoundError("no such page");
  if (target.kind == Target::kOverview) page = pages_.Overview(project);
  if (target.kind == Target::kJobs) {
    page = pages_.Jobs(project, Parameter(request, "group"), page_token);
  }
  if (target.kind == Target::kJob) page = pages_.Job(caller->project(), target.resource);
  if (target.kind == Target::kWorkers) page = pages_.Workers(page_token);
  return page.ok() ? PageReply(*std::move(page)) : Refusal(page.status());
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
