#include "coordinator/services/small_services.h"

#include <memory>

#include "coordinator/services/session_stream.h"

namespace ringmaster::coordinator {
namespace {

constexpr char kCluster[] = "ClusterService";
constexpr char kCheckpoint[] = "CheckpointService";
constexpr char kQueue[] = "QueueService";

}  // namespace

grpc::ServerUnaryReactor* ClusterService::ListWorkers(grpc::CallbackServerContext* context,
                                                      const v1::ListWorkersRequest* request,
                                                      v1::ListWorkersResponse* response) {
  return AskCore(services_, {kCluster, "ListWorkers"}, context, *request, response);
}

grpc::ServerUnaryReactor* ClusterService::GetWorker(grpc::CallbackServerContext* context,
                                                    const v1::GetWorkerRequest* request,
                                                    v1::Worker* response) {
  return AskCore(services_, {kCluster, "GetWorker"}, context, *request, response);
}

grpc::ServerUnaryReactor* ClusterService::CordonWorker(grpc::CallbackServerContext* context,
                                                       const v1::CordonWorkerRequest* request,
                                                       v1::Worker* response) {
  return AskCore(services_, {kCluster, "CordonWorker"}, context, *request, response);
}

grpc::ServerUnaryReactor* ClusterService::DrainWorker(grpc::CallbackServerContext* context,
                                                      const v1::DrainWorkerRequest* request,
                                                      v1::Worker* response) {
  return AskCore(services_, {kCluster, "DrainWorker"}, context, *request, response);
}

grpc::ServerUnaryReactor* ClusterService::UncordonWorker(grpc::CallbackServerContext* context,
                                                         const v1::UncordonWorkerRequest* request,
                                                         v1::Worker* response) {
  return AskCore(services_, {kCluster, "UncordonWorker"}, context, *request, response);
}

grpc::ServerUnaryReactor* CheckpointService::ListCheckpoints(
    grpc::CallbackServerContext* context, const v1::ListCheckpointsRequest* request,
    v1::ListCheckpointsResponse* response) {
  return AskCore(services_, {kCheckpoint, "ListCheckpoints"}, context, *request, response);
}

grpc::ServerUnaryReactor* CheckpointService::GetCheckpoint(grpc::CallbackServerContext* context,
                                                           const v1::GetCheckpointRequest* request,
                                                           v1::Checkpoint* response) {
  return AskCore(services_, {kCheckpoint, "GetCheckpoint"}, context, *request, response);
}

grpc::ServerUnaryReactor* CheckpointService::ImportCheckpoint(
    grpc::CallbackServerContext* context, const v1::ImportCheckpointRequest* request,
    v1::Checkpoint* response) {
  return AskCore(services_, {kCheckpoint, "ImportCheckpoint"}, context, *request, response,
                 request->directory());
}

grpc::ServerUnaryReactor* QueueService::CreateQueue(grpc::CallbackServerContext* context,
                                                    const v1::CreateQueueRequest* request,
                                                    v1::Queue* response) {
  return AskCore(services_, {kQueue, "CreateQueue"}, context, *request, response);
}

grpc::ServerUnaryReactor* QueueService::GetQueue(grpc::CallbackServerContext* context,
                                                 const v1::GetQueueRequest* request,
                                                 v1::Queue* response) {
  return AskCore(services_, {kQueue, "GetQueue"}, context, *request, response);
}

grpc::ServerUnaryReactor* QueueService::ListQueues(grpc::CallbackServerContext* context,
                                                   const v1::ListQueuesRequest* request,
                                                   v1::ListQueuesResponse* response) {
  return AskCore(services_, {kQueue, "ListQueues"}, context, *request, response);
}

grpc::ServerUnaryReactor* QueueService::UpdateQueue(grpc::CallbackServerContext* context,
                                                    const v1::UpdateQueueRequest* request,
                                                    v1::Queue* response) {
  return AskCore(services_, {kQueue, "UpdateQueue"}, context, *request, response);
}

grpc::ServerUnaryReactor* QueueService::DeleteQueue(grpc::CallbackServerContext* context,
                                                    const v1::DeleteQueueRequest* request,
                                                    google::protobuf::Empty* response) {
  return AskCore(services_, {kQueue, "DeleteQueue"}, context, *request, response);
}

grpc::ServerBidiReactor<v1::WorkerReport, v1::Directive>* WorkerService::Session(
    grpc::CallbackServerContext* context) {
  const absl::StatusOr<CallRecord> call =
      BeginCall(services_, SessionStream::kMethod, *context, /*resource=*/"");
  if (!call.ok()) {
    return new RefusedStream<grpc::ServerBidiReactor<v1::WorkerReport, v1::Directive>>(
        services_, SessionStream::kMethod, call.status());
  }
  // Its end may be far away, and is in the worker's state.
  Audit(services_, *call, absl::OkStatus());
  auto stream = std::make_shared<SessionStream>(services_, context);
  stream->Begin(call->caller);
  return stream.get();
}

grpc::ServerUnaryReactor* WorkerService::ReportFault(grpc::CallbackServerContext* context,
                                                     const v1::ReportFaultRequest* request,
                                                     v1::ReportFaultResponse* response) {
  constexpr Method kMethod = {"WorkerService", "ReportFault"};
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  std::optional<CallRecord> call = BeginUnary(services_, kMethod, context, *request, reactor);
  if (!call.has_value()) return reactor;
  services_.loop->WorkerEnded(*request, DeadlineOf(*services_.loop, *context),
                              FinishWith(services_, *std::move(call), reactor, response));
  return reactor;
}

}  // namespace ringmaster::coordinator
