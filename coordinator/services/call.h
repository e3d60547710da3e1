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
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

// What the services share; all of it outlives the server.
struct ServiceContext {
  EventLoop* loop = nullptr;
  Metrics* metrics = nullptr;
  DiskThreads* disk = nullptr;
  // One thread for estimates, which compute for long and need neither the loop nor a disk.
  DiskThreads* estimates = nullptr;
  // Changes, beyond the snapshot, that may wait for a watcher that does not read.
  size_t watch_buffer = 1024;
};

// Which method a call is, for metrics.
struct Method {
  const char* service;
  const char* name;
};

// Counts a finished call.
void CountCall(Metrics& metrics, const Method& method, const absl::Status& status);

// Counts and times a finished unary call.
void CountUnary(Metrics& metrics, const Method& method, const absl::Status& status,
                absl::Time begin);

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
template <typename Response>
grpc::ServerUnaryReactor* AskCore(const ServiceContext& services, Method method,
                                  grpc::CallbackServerContext* context, ApiMessage request,
                                  Response* response, std::string path = "") {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  CallCore(services, std::move(request), std::move(path), DeadlineOf(*services.loop, *context),
           FinishWith(services, method, reactor, response));
  return reactor;
}

}  // namespace ringmaster::coordinator
