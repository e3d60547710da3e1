#pragma once

#include <atomic>

#include "coordinator/services/call.h"
#include "ringmaster/v1/job_service.grpc.pb.h"

namespace ringmaster::coordinator {

// JobService: answers come from the core, but for estimates, which need none of it; logs and
// metrics come from the job's directory.
class JobService : public v1::JobService::CallbackService {
 public:
  explicit JobService(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* CreateTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::CreateTrainingJobRequest* request,
                                              v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* GetTrainingJob(grpc::CallbackServerContext* context,
                                           const v1::GetTrainingJobRequest* request,
                                           v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* ListTrainingJobs(grpc::CallbackServerContext* context,
                                             const v1::ListTrainingJobsRequest* request,
                                             v1::ListTrainingJobsResponse* response) override;
  grpc::ServerUnaryReactor* CancelTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::CancelTrainingJobRequest* request,
                                              v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* UpdateTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::UpdateTrainingJobRequest* request,
                                              v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* PauseTrainingJob(grpc::CallbackServerContext* context,
                                             const v1::PauseTrainingJobRequest* request,
                                             v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* ResumeTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::ResumeTrainingJobRequest* request,
                                              v1::TrainingJob* response) override;
  grpc::ServerUnaryReactor* DeleteTrainingJob(grpc::CallbackServerContext* context,
                                              const v1::DeleteTrainingJobRequest* request,
                                              google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* EstimateTrainingJob(grpc::CallbackServerContext* context,
                                                const v1::EstimateTrainingJobRequest* request,
                                                v1::EstimateTrainingJobResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchTrainingJobsResponse>* WatchTrainingJobs(
      grpc::CallbackServerContext* context, const v1::WatchTrainingJobsRequest* request) override;
  grpc::ServerWriteReactor<v1::StreamTrainingJobLogsResponse>* StreamTrainingJobLogs(
      grpc::CallbackServerContext* context,
      const v1::StreamTrainingJobLogsRequest* request) override;
  grpc::ServerWriteReactor<v1::StreamTrainingJobMetricsResponse>* StreamTrainingJobMetrics(
      grpc::CallbackServerContext* context,
      const v1::StreamTrainingJobMetricsRequest* request) override;

 private:
  const ServiceContext services_;
  std::atomic<int> estimates_waiting_ = 0;
};

}  // namespace ringmaster::coordinator
