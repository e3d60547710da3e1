#include "coordinator/services/job_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "coordinator/core/estimate.h"
#include "coordinator/core/names.h"
#include "coordinator/records/rank_log.h"
#include "coordinator/records/step_log.h"
#include "coordinator/services/record_stream.h"
#include "coordinator/services/watch_stream.h"

namespace ringmaster::coordinator {
namespace {

// Each holds a request in memory and costs up to a second.
constexpr int kEstimatesWaiting = 32;
constexpr size_t kLinesPerMessage = 256;
// Clients accept messages of 4 MiB; a line may be long.
constexpr size_t kLineBytesPerMessage = 1 << 20;
constexpr size_t kRecordsPerMessage = 256;

constexpr Method Of(const char* name) { return {.service = "JobService", .name = name}; }

// The checkpoint that a job is to start from; empty when it starts fresh.
std::string StartPath(const v1::TrainingJobSpec& spec) {
  return spec.has_init_from() ? spec.init_from() : spec.resume_from();
}

absl::Status CheckWatch(const v1::WatchTrainingJobsRequest& request) {
  if (!request.name().empty()) return ParseJobName("name", request.name()).status();
  return ParseParent("parent", request.parent(), /*wildcard=*/true).status();
}

absl::Status CheckLogs(const v1::StreamTrainingJobLogsRequest& request) {
  if (request.tail_lines() < 0) {
    return InvalidField("tail_lines", "must not be negative; 0 means all");
  }
  if (std::any_of(request.ranks().begin(), request.ranks().end(),
                  [](int32_t rank) { return rank < 0; })) {
    return InvalidField("ranks", "must not be negative");
  }
  return absl::OkStatus();
}

absl::Status CheckMetrics(const v1::StreamTrainingJobMetricsRequest& request) {
  if (request.start_step() >= 0) return absl::OkStatus();
  return InvalidField("start_step", "must not be negative");
}

// Where streams of jobs begin: the caller's name when it may call and `check` has nothing against
// the request.
template <typename Request>
absl::StatusOr<std::string> Admit(const ServiceContext& services, const Method& method,
                                  grpc::CallbackServerContext* context, const Request& request,
                                  absl::Status (*check)(const Request&)) {
  ASSIGN_OR_RETURN(const CallRecord call,
                   BeginCall(services, method, *context, ResourceOf(request)));
  RETURN_IF_ERROR(check(request));
  return call.caller;
}

template <typename Response>
grpc::ServerWriteReactor<Response>* RefuseStream(const ServiceContext& services,
                                                 const Method& method, const absl::Status& status) {
  return new RefusedStream<grpc::ServerWriteReactor<Response>>(services, method, status);
}

class LogSource : public RecordSource<v1::StreamTrainingJobLogsResponse> {
 public:
  LogSource(const std::string& directory, const v1::StreamTrainingJobLogsRequest& request)
      : logs_(directory, {request.ranks().begin(), request.ranks().end()}, request.tail_lines()) {}

  bool Next(v1::StreamTrainingJobLogsResponse* response) override {
    for (v1::LogLine& line : logs_.Next(kLinesPerMessage, kLineBytesPerMessage)) {
      *response->add_lines() = std::move(line);
    }
    return response->lines_size() > 0;
  }

 private:
  JobLogs logs_;
};

class StepSource : public RecordSource<v1::StreamTrainingJobMetricsResponse> {
 public:
  StepSource(const v1::TrainingJob& job, int64_t start_step)
      : log_(job.spec().directory() + "/steps.jsonl", job.uid(), start_step) {}

  bool Next(v1::StreamTrainingJobMetricsResponse* response) override {
    for (v1::StepRecord& record : log_.Next(kRecordsPerMessage)) {
      *response->add_records() = std::move(record);
    }
    return response->records_size() > 0;
  }

 private:
  StepLog log_;
};

}  // namespace

grpc::ServerUnaryReactor* JobService::CreateTrainingJob(grpc::CallbackServerContext* context,
                                                        const v1::CreateTrainingJobRequest* request,
                                                        v1::TrainingJob* response) {
  return AskCore(services_, Of("CreateTrainingJob"), context, *request, response,
                 StartPath(request->training_job().spec()));
}

grpc::ServerUnaryReactor* JobService::GetTrainingJob(grpc::CallbackServerContext* context,
                                                     const v1::GetTrainingJobRequest* request,
                                                     v1::TrainingJob* response) {
  return AskCore(services_, Of("GetTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::ListTrainingJobs(grpc::CallbackServerContext* context,
                                                       const v1::ListTrainingJobsRequest* request,
                                                       v1::ListTrainingJobsResponse* response) {
  return AskCore(services_, Of("ListTrainingJobs"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::CancelTrainingJob(grpc::CallbackServerContext* context,
                                                        const v1::CancelTrainingJobRequest* request,
                                                        v1::TrainingJob* response) {
  return AskCore(services_, Of("CancelTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::UpdateTrainingJob(grpc::CallbackServerContext* context,
                                                        const v1::UpdateTrainingJobRequest* request,
                                                        v1::TrainingJob* response) {
  return AskCore(services_, Of("UpdateTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::PauseTrainingJob(grpc::CallbackServerContext* context,
                                                       const v1::PauseTrainingJobRequest* request,
                                                       v1::TrainingJob* response) {
  return AskCore(services_, Of("PauseTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::ResumeTrainingJob(grpc::CallbackServerContext* context,
                                                        const v1::ResumeTrainingJobRequest* request,
                                                        v1::TrainingJob* response) {
  return AskCore(services_, Of("ResumeTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::DeleteTrainingJob(grpc::CallbackServerContext* context,
                                                        const v1::DeleteTrainingJobRequest* request,
                                                        google::protobuf::Empty* response) {
  return AskCore(services_, Of("DeleteTrainingJob"), context, *request, response);
}

grpc::ServerUnaryReactor* JobService::EstimateTrainingJob(
    grpc::CallbackServerContext* context, const v1::EstimateTrainingJobRequest* request,
    v1::EstimateTrainingJobResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const std::optional<CallRecord> call =
      BeginUnary(services_, Of("EstimateTrainingJob"), context, *request, reactor);
  if (!call.has_value()) return reactor;
  const auto answer = [this, context, request, response]() -> absl::Status {
    if (context->IsCancelled()) return absl::CancelledError("nobody waits for the estimate");
    absl::StatusOr<v1::EstimateTrainingJobResponse> estimate = EstimateJob(*request);
    if (estimate.ok()) *response = *std::move(estimate);
    return estimate.status();
  };
  const auto finish = [this, reactor, call = *call](const absl::Status& status) {
    EndUnary(services_, call, status);
    reactor->Finish(ToGrpc(status));
  };
  if (++estimates_waiting_ > kEstimatesWaiting) {
    --estimates_waiting_;
    finish(Unavailable("TOO_MANY_CALLS", "too many estimates wait already", absl::Seconds(1)));
    return reactor;
  }
  services_.estimates->Post([this, answer, finish] {
    const absl::Status status = answer();
    --estimates_waiting_;
    finish(status);
  });
  return reactor;
}

grpc::ServerWriteReactor<v1::WatchTrainingJobsResponse>* JobService::WatchTrainingJobs(
    grpc::CallbackServerContext* context, const v1::WatchTrainingJobsRequest* request) {
  const absl::StatusOr<std::string> caller =
      Admit(services_, WatchStream::kMethod, context, *request, CheckWatch);
  if (!caller.ok()) {
    return RefuseStream<v1::WatchTrainingJobsResponse>(services_, WatchStream::kMethod,
                                                       caller.status());
  }
  auto stream = std::make_shared<WatchStream>(services_);
  stream->Begin(*request, *caller);
  return stream.get();
}

grpc::ServerWriteReactor<v1::StreamTrainingJobLogsResponse>* JobService::StreamTrainingJobLogs(
    grpc::CallbackServerContext* context, const v1::StreamTrainingJobLogsRequest* request) {
  constexpr Method kMethod = Of("StreamTrainingJobLogs");
  const absl::StatusOr<std::string> caller =
      Admit(services_, kMethod, context, *request, CheckLogs);
  if (!caller.ok()) {
    return RefuseStream<v1::StreamTrainingJobLogsResponse>(services_, kMethod, caller.status());
  }
  auto stream = std::make_shared<RecordStream<v1::StreamTrainingJobLogsResponse>>(
      services_, context, kMethod, *caller, request->name(), request->follow(),
      [request = *request](const v1::TrainingJob& job) {
        return std::make_unique<LogSource>(job.spec().directory(), request);
      });
  stream->Begin();
  return stream.get();
}

grpc::ServerWriteReactor<v1::StreamTrainingJobMetricsResponse>*
JobService::StreamTrainingJobMetrics(grpc::CallbackServerContext* context,
                                     const v1::StreamTrainingJobMetricsRequest* request) {
  constexpr Method kMethod = Of("StreamTrainingJobMetrics");
  const absl::StatusOr<std::string> caller =
      Admit(services_, kMethod, context, *request, CheckMetrics);
  if (!caller.ok()) {
    return RefuseStream<v1::StreamTrainingJobMetricsResponse>(services_, kMethod, caller.status());
  }
  auto stream = std::make_shared<RecordStream<v1::StreamTrainingJobMetricsResponse>>(
      services_, context, kMethod, *caller, request->name(), request->follow(),
      [start = request->start_step()](const v1::TrainingJob& job) {
        return std::make_unique<StepSource>(job, start);
      });
  stream->Begin();
  return stream.get();
}

}  // namespace ringmaster::coordinator
