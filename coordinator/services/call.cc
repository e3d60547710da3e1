#include "coordinator/services/call.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "coordinator/records/manifest.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kResourceBytesMax = 256;

// Whoever is refused may have sent anything. In JSON it stays below twice its size, since what that
// would make six bytes of is no longer there.
std::string Escaped(absl::string_view resource) {
  std::string escaped = absl::CHexEscape(resource.substr(0, kResourceBytesMax));
  absl::StrReplaceAll({{"<", "\\x3c"}, {">", "\\x3e"}}, &escaped);
  return escaped.substr(0, kResourceBytesMax);
}

}  // namespace

void WriteDown(const ServiceContext& services, const CallRecord& call, const absl::Status& status) {
  store::AuditRecord record;
  record.set_caller(call.caller);
  record.set_peer(call.peer);
  record.set_method(absl::StrCat(call.method.service, ".", call.method.name));
  record.set_resource(Escaped(call.resource));
  services.audit->Write(std::move(record), status);
}

void CountCall(Metrics& metrics, const Method& method, const absl::Status& status) {
  metrics.Count(Metric::kGrpcRequests,
                {method.service, method.name, absl::StatusCodeToString(status.code())});
}

void EndUnary(const ServiceContext& services, const CallRecord& call, const absl::Status& status) {
  CountCall(*services.metrics, call.method, status);
  services.metrics->Observe(Metric::kGrpcRequestSeconds,
                            absl::ToDoubleSeconds(absl::Now() - call.begin), {call.method.name});
  Audit(services, call, status);
}

absl::StatusOr<CallRecord> BeginCall(const ServiceContext& services, const Method& method,
                                     const grpc::CallbackServerContext& context,
                                     std::string resource) {
  CallRecord call = {.method = method,
                     .begin = absl::Now(),
                     .peer = context.peer(),
                     .resource = std::move(resource)};
  absl::StatusOr<std::string> caller = services.access->Admit(method, context, call.resource);
  if (!caller.ok()) {
    WriteDown(services, call, caller.status());
    return caller.status();
  }
  call.caller = *std::move(caller);
  return call;
}

void Audit(const ServiceContext& services, const CallRecord& call, const absl::Status& status) {
  const Permission* const permission = FindPermission(call.method);
  if (permission != nullptr && permission->scope == v1::Token::VIEWER) return;
  WriteDown(services, call, status);
}

absl::Time DeadlineOf(const EventLoop& loop, const grpc::CallbackServerContext& context) {
  return loop.Now() + (absl::FromChrono(context.deadline()) - absl::Now());
}

void CallCore(const ServiceContext& services, ApiMessage request, std::string path,
              absl::Time deadline, EventLoop::ReplyCallback reply) {
  if (path.empty()) {
    services.loop->Call(std::move(request), std::nullopt, deadline, std::move(reply));
    return;
  }
  services.disk->Post([loop = services.loop, request = std::move(request), path = std::move(path),
                       deadline, reply = std::move(reply)]() mutable {
    loop->Call(std::move(request), ReadManifest(path), deadline, std::move(reply));
  });
}

}  // namespace ringmaster::coordinator
