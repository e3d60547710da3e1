#pragma once

#include <optional>
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
#include "coordinator/services/audit_log.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

// What the services share; all of it outlives the server.
struct ServiceContext {
  EventLoop* loop = nullptr;
  Metrics* metrics = nullptr;
  Access* access = nullptr;
  AuditLog* audit = nullptr;
  DiskThreads* disk = nullptr;
  // One thread for estimates, which compute for long and need neither the loop nor a disk.
  DiskThreads* estimates = nullptr;
  // Changes, beyond the snapshot, that may wait for a watcher that does not read.
  size_t watch_buffer = 1024;
};

// A call that may be made: what is counted, timed and written down of it.
struct CallRecord {
  Method method;
  absl::Time begin;
  // As Access::Admit() names it.
  std::string caller;
  std::string peer;
  std::string resource;
};

// Writes down a call that its caller may not make, or how one that may be made went.
void WriteDown(const ServiceContext& services, const CallRecord& call, const absl::Status& status);

// Where every call of gRPC begins: an error when the caller may not make it, which is then written
// down. `resource`: what it is about, as ResourceOf() tells.
absl::StatusOr<CallRecord> BeginCall(const ServiceContext& services, const Method& method,
                                     const grpc::CallbackServerContext& context,
                                     std::string resource);

// WriteDown() of a call if it takes more than a viewer's token: what only reads is not.
void Audit(const ServiceContext& services, const CallRecord& call, const absl::Status& status);

// Counts a finished call.
void CountCall(Metrics& metrics, const Method& method, const absl::Status& status);

// Counts, times and writes down a finished unary call.
void EndUnary(const ServiceContext& services, const CallRecord& call, const absl::Status& status);

// BeginCall for a unary call. Nothing when the caller may not make it; then `reactor` is finished.
template <typename Request>
std::optional<CallRecord> BeginUnary(const ServiceContext& services, const Method& method,
                                     const grpc::CallbackServerContext* context,
                                     const Request& request, grpc::ServerUnaryReactor* reactor) {
  absl::StatusOr<CallRecord> call = BeginCall(services, method, *context, ResourceOf(request));
  if (call.ok()) return *std::move(call);
  CountCall(*services.metrics, method, call.status());
  reactor->Finish(ToGrpc(call.status()));
  return std::nullopt;
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
EventLoop::ReplyCallback FinishWith(const ServiceContext& services, CallRecord call,
                                    grpc::ServerUnaryReactor* reactor, Response* response) {
  return [=, call = std::move(call)](absl::StatusOr<ApiResponse> reply) mutable {
    absl::Status status = reply.status();
    if (status.ok()) {
      Response* const value = std::get_if<Response>(&*reply);
      if (value != nullptr) {
        *response = std::move(*value);
        // Of what was created, the request says only where.
        if constexpr (requires { response->name(); }) call.resource = response->name();
      } else {
        status = absl::InternalError("the core answered another call");
      }
    }
    EndUnary(services, call, status);
    reactor->Finish(ToGrpc(status));
  };
}

// A unary call that the core answers. `path`: a checkpoint that the request names, or empty.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* AskCore(const ServiceContext& services, Method method,
                                  grpc::CallbackServerContext* context, const Request& request,
                                  Response* response, std::string path = "") {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  std::optional<CallRecord> call = BeginUnary(services, method, context, request, reactor);
  if (!call.has_value()) return reactor;
  CallCore(services, request, std::move(path), DeadlineOf(*services.loop, *context),
           FinishWith(services, *std::move(call), reactor, response));
  return reactor;
}

}  // namespace ringmaster::coordinator
