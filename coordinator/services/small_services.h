#pragma once

#include "coordinator/services/call.h"
#include "ringmaster/v1/checkpoint_service.grpc.pb.h"
#include "ringmaster/v1/cluster_service.grpc.pb.h"
#include "ringmaster/v1/queue_service.grpc.pb.h"
#include "ringmaster/v1/worker_service.grpc.pb.h"

// The smaller services: each method is one question to the core, or one stream.
namespace ringmaster::coordinator {

class ClusterService : public v1::ClusterService::CallbackService {
 public:
  explicit ClusterService(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* ListWorkers(grpc::CallbackServerContext* context,
                                        const v1::ListWorkersRequest* request,
                                        v1::ListWorkersResponse* response) override;
  grpc::ServerUnaryReactor* GetWorker(grpc::CallbackServerContext* context,
                                      const v1::GetWorkerRequest* request,
                                      v1::Worker* response) override;
  grpc::ServerUnaryReactor* CordonWorker(grpc::CallbackServerContext* context,
                                         const v1::CordonWorkerRequest* request,
                                         v1::Worker* response) override;
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* context,
                                        const v1::DrainWorkerRequest* request,
                                        v1::Worker* response) override;
  grpc::ServerUnaryReactor* UncordonWorker(grpc::CallbackServerContext* context,
                                           const v1::UncordonWorkerRequest* request,
                                           v1::Worker* response) override;

 private:
  const ServiceContext services_;
};

class CheckpointService : public v1::CheckpointService::CallbackService {
 public:
  explicit CheckpointService(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* ListCheckpoints(grpc::CallbackServerContext* context,
                                            const v1::ListCheckpointsRequest* request,
                                            v1::ListCheckpointsResponse* response) override;
  grpc::ServerUnaryReactor* GetCheckpoint(grpc::CallbackServerContext* context,
                                          const v1::GetCheckpointRequest* request,
                                          v1::Checkpoint* response) override;
  grpc::ServerUnaryReactor* ImportCheckpoint(grpc::CallbackServerContext* context,
                                             const v1::ImportCheckpointRequest* request,
                                             v1::Checkpoint* response) override;

 private:
  const ServiceContext services_;
};

class QueueService : public v1::QueueService::CallbackService {
 public:
  explicit QueueService(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* CreateQueue(grpc::CallbackServerContext* context,
                                        const v1::CreateQueueRequest* request,
                                        v1::Queue* response) override;
  grpc::ServerUnaryReactor* GetQueue(grpc::CallbackServerContext* context,
                                     const v1::GetQueueRequest* request,
                                     v1::Queue* response) override;
  grpc::ServerUnaryReactor* ListQueues(grpc::CallbackServerContext* context,
                                       const v1::ListQueuesRequest* request,
                                       v1::ListQueuesResponse* response) override;
  grpc::ServerUnaryReactor* UpdateQueue(grpc::CallbackServerContext* context,
                                        const v1::UpdateQueueRequest* request,
                                        v1::Queue* response) override;
  grpc::ServerUnaryReactor* DeleteQueue(grpc::CallbackServerContext* context,
                                        const v1::DeleteQueueRequest* request,
                                        google::protobuf::Empty* response) override;

 private:
  const ServiceContext services_;
};

class WorkerService : public v1::WorkerService::CallbackService {
 public:
  explicit WorkerService(const ServiceContext& services) : services_(services) {}

  grpc::ServerBidiReactor<v1::WorkerReport, v1::Directive>* Session(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ReportFault(grpc::CallbackServerContext* context,
                                        const v1::ReportFaultRequest* request,
                                        v1::ReportFaultResponse* response) override;

 private:
  const ServiceContext services_;
};

}  // namespace ringmaster::coordinator
