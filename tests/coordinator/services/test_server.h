#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/services/server.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"
#include "ringmaster/v1/checkpoint_service.grpc.pb.h"
#include "ringmaster/v1/cluster_service.grpc.pb.h"
#include "ringmaster/v1/job_service.grpc.pb.h"
#include "ringmaster/v1/queue_service.grpc.pb.h"
#include "ringmaster/v1/worker_service.grpc.pb.h"
#include "tests/testing/http_connection.h"
#include "tests/testing/temporary_directory.h"
#include "tests/testing/training_job.h"

namespace ringmaster::coordinator {

// A coordinator in this process on free ports of loopback, spoken to over real connections.
class ServerTest : public ::testing::Test {
 protected:
  static constexpr size_t kWatchBuffer = 32;

  ServerTest() { Start(); }

  ServerOptions Options() const {
    ServerOptions options;
    options.data_directory = temporary_.path() + "/data";
    options.shared_directory = temporary_.path() + "/shared";
    options.listen = "127.0.0.1:0";
    options.http_listen = "127.0.0.1:0";
    options.watch_buffer = kWatchBuffer;
    return options;
  }

  void Start() { Start(Options()); }
  void Start(const ServerOptions& options) {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    channel_ = Dial();
    jobs_ = v1::JobService::NewStub(channel_);
    cluster_ = v1::ClusterService::NewStub(channel_);
    checkpoints_ = v1::CheckpointService::NewStub(channel_);
    queues_ = v1::QueueService::NewStub(channel_);
    workers_ = v1::WorkerService::NewStub(channel_);
  }

  std::shared_ptr<grpc::Channel> Dial(grpc::ChannelArguments arguments = {}) const {
    // Not shared with the channels of an earlier server of this process.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(),
                                     arguments);
  }

  // Whose calls take in a few bytes and no more until they are read.
  std::shared_ptr<grpc::Channel> DialWithoutReading() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 5);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return Dial(arguments);
  }

  static std::string Name(const std::string& id) { return "projects/default/trainingJobs/" + id; }

  static v1::CreateTrainingJobRequest CreateRequest(const std::string& id) {
    return SmallRequest(id);
  }

  // One unary call, with the server's details in the status.
  template <typename Stub, typename Request, typename Reply>
  static absl::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                        Reply*),
                           const std::unique_ptr<Stub>& stub, const Request& request,
                           Reply* reply) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    return FromGrpc((stub.get()->*method)(&context, request, reply));
  }

  absl::StatusOr<v1::TrainingJob> Create(const v1::CreateTrainingJobRequest& request) {
    v1::TrainingJob job;
    const absl::Status status =
        Call(&v1::JobService::Stub::CreateTrainingJob, jobs_, request, &job);
    if (!status.ok()) return status;
    return job;
  }
  absl::StatusOr<v1::TrainingJob> Get(const std::string& id) {
    v1::GetTrainingJobRequest request;
    request.set_name(Name(id));
    v1::TrainingJob job;
    const absl::Status status = Call(&v1::JobService::Stub::GetTrainingJob, jobs_, request, &job);
    if (!status.ok()) return status;
    return job;
  }
  // Cancel, pause, resume.
  template <typename Request>
  absl::StatusOr<v1::TrainingJob> Change(
      grpc::Status (v1::JobService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                   v1::TrainingJob*),
      const std::string& id, const std::string& etag = "") {
    Request request;
    request.set_name(Name(id));
    request.set_etag(etag);
    v1::TrainingJob job;
    const absl::Status status = Call(method, jobs_, request, &job);
    if (!status.ok()) return status;
    return job;
  }
  absl::StatusOr<v1::TrainingJob> Cancel(const std::string& id, const std::string& etag = "") {
    return Change(&v1::JobService::Stub::CancelTrainingJob, id, etag);
  }
  absl::Status Delete(const std::string& id) {
    v1::DeleteTrainingJobRequest request;
    request.set_name(Name(id));
    google::protobuf::Empty reply;
    return Call(&v1::JobService::Stub::DeleteTrainingJob, jobs_, request, &reply);
  }

  const TemporaryDirectory temporary_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::ClusterService::Stub> cluster_;
  std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
  std::unique_ptr<v1::QueueService::Stub> queues_;
  std::unique_ptr<v1::WorkerService::Stub> workers_;
};

}  // namespace ringmaster::coordinator
