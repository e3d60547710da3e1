#pragma once

#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "coordinator/loop/event_loop.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/records/disk_threads.h"
#include "coordinator/services/access.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

// What the services share; all of it outlives the server.
struct ServiceContext {
  EventLoop* loop = nullptr;
  Metrics* metrics = nullptr;
  Access* access = nullptr;
  DiskThreads* disk = nullptr;
  // One thread for estimates, which compute for long and need neither the loop nor a disk.
  DiskThreads* estimates = nullptr;
  // Changes, beyond the snapshot, that may wait for a watcher that does not read.
  size_t watch_buffer = 1024;
};

// Counts a finished call.
void CountCall(Metrics& metrics, const Method& method, const absl::Status& status);

// Counts and times a finished unary call.
void CountUnary(Metrics& metrics, const Method& method, const absl::Status& status,
                absl::Time begin);

// Where every unary call begins: true when the caller may not make it; then `reactor` is finished.
template <typename Request>
bool Refused(const ServiceContext& services, const Method& method,
             grpc::CallbackServerContext* context, const Request& request,
             grpc::ServerUnaryReactor* reactor) {
  const absl::Time begin = absl::Now();
  const absl::Status status = services.access->Admit(method, *context, ProjectOf(request)).status();
  if (status.ok()) return false;
  CountUnary(*services.metrics, method, status, begin);
  reactor->Finish(ToGrpc(status));
  return true;
}

// A stream that ends before it began. `Base`: its kind of reactor.
template <typename Base>
class RefusedStream : public Base {
 public:
  RefusedStream(const ServiceContext& services, const Method& method, const absl::Status& status) {
    CountCall(*services.metrics, method, status);
    this->Finish(ToGrpc(status));
  }
  void OnDone() override { delete this; }
};

// On the loop's clock, which the machine's may have left since the start.
absl::Time DeadlineOf(const EventLoop& loop, const grpc::CallbackServerContext& context);

// Asks the loop; reads the checkpoint manifest at `path` first, on a disk thread, when it is not
// empty.
void CallCore(const ServiceContext& services, ApiMessage request, std::string path,
              absl::Time deadline, EventLoop::ReplyCallback reply);

// Fills in `response` and finishes the call when the loop replies.
template <typename Response>
EventLoop::ReplyCallback FinishWith(const ServiceContext& services, Method method,
                                    grpc::ServerUnaryReactor* reactor, Response* response) {
  return [=, metrics = services.metrics, begin = absl::Now()](absl::StatusOr<ApiResponse> reply) {
    absl::Status status = reply.status();
    if (status.ok()) {
      Response* const value = std::get_if<Response>(&*reply);
      if (value != nullptr) {
        *response = std::move(*value);
      } else {
        status = absl::InternalError("the core answered another call");
      }
    }
    CountUnary(*metrics, method, status, begin);
    reactor->Finish(ToGrpc(status));
  };
}

// A unary call that the core answers. `path`: a checkpoint that the request names, or empty.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* AskCore(const ServiceContext& services, Method method,
                                  grpc::CallbackServerContext* context, const Request& request,
                                  Response* response, std::string path = "") {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  if (Refused(services, method, context, request, reactor)) return reactor;
  CallCore(services, request, std::move(path), DeadlineOf(*services.loop, *context),
           FinishWith(services, method, reactor, response));
  return reactor;
}

}  // namespace ringmaster::coordinator
