#include "coordinator/services/call.h"

#include "coordinator/records/manifest.h"

namespace ringmaster::coordinator {

void CountCall(Metrics& metrics, const Method& method, const absl::Status& status) {
  metrics.Count(Metric::kGrpcRequests,
                {method.service, method.name, absl::StatusCodeToString(status.code())});
}

void CountUnary(Metrics& metrics, const Method& method, const absl::Status& status,
                absl::Time begin) {
  CountCall(metrics, method, status);
  metrics.Observe(Metric::kGrpcRequestSeconds, absl::ToDoubleSeconds(absl::Now() - begin),
                  {method.name});
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
