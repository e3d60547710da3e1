#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"
#include "ringmaster/v1/checkpoint_service.grpc.pb.h"
#include "ringmaster/v1/cluster_service.grpc.pb.h"
#include "ringmaster/v1/job_service.grpc.pb.h"
#include "ringmaster/v1/queue_service.grpc.pb.h"
#include "ringmaster/v1/token_service.grpc.pb.h"

namespace ringmaster::cli {

enum class OutputFormat { kTable, kJson, kYaml, kName };

// What every command shares; filled from flags and environment by main().
struct GlobalOptions {
  std::string address = "127.0.0.1:7077";
  std::string project = "default";
  // PEM file of the authority that signed the coordinator's certificate; empty: no TLS. The client
  // certificate and key are optional.
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  // Holds the token to show; empty: that of RINGMASTER_TOKEN, if it is set.
  std::string token_file;
  absl::Duration timeout = absl::Seconds(10);
  OutputFormat output = OutputFormat::kTable;
};

// The coordinator's public API. Connects lazily. Thread-compatible.
class Client {
 public:
  // InvalidArgument when a file cannot be read, or the token would travel in the clear.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const GlobalOptions& options);

  v1::JobService::Stub& jobs() { return *jobs_; }
  v1::ClusterService::Stub& cluster() { return *cluster_; }
  v1::CheckpointService::Stub& checkpoints() { return *checkpoints_; }
  v1::QueueService::Stub& queues() { return *queues_; }
  v1::TokenService::Stub& tokens() { return *tokens_; }

  // Readies `context` for a unary call: deadline and wait-for-ready off.
  void Prepare(grpc::ClientContext* context) const;

  // The resource name of a job given as id or as full name.
  std::string JobName(const std::string& job) const;
  std::string Parent() const { return "projects/" + options_.project; }
  const GlobalOptions& options() const { return options_; }

  // One unary call: client.Call(&JobService::Stub::GetTrainingJob, client.jobs(), request, &reply).
  template <typename Stub, typename Request, typename Reply>
  absl::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                    Stub& stub, const Request& request, Reply* reply) {
    grpc::ClientContext context;
    Prepare(&context);
    const grpc::Status status = (stub.*method)(&context, request, reply);
    answered_ = answered_ || status.ok();
    return Translate(status);
  }

  // Runs `read`, which reads a stream about `job`: with `follow` as RetryStream does, else once.
  // Unless a call was answered before, the job is asked for first, so that a wrong address or name
  // is told at once.
  absl::Status ReadStream(const std::string& job, bool follow, std::ostream& err,
                          const std::function<absl::Status(bool& answered)>& read);

  // The server's status with its details written into the message: fields, limits, nearest valid
  // values.
  absl::Status Translate(const grpc::Status& status) const;

 private:
  Client(GlobalOptions options, std::shared_ptr<grpc::Channel> channel);

  const GlobalOptions options_;
  bool answered_ = false;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::JobService::Stub> jobs_;
  const std::unique_ptr<v1::ClusterService::Stub> cluster_;
  const std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
  const std::unique_ptr<v1::QueueService::Stub> queues_;
  const std::unique_ptr<v1::TokenService::Stub> tokens_;
};

// A random UUID for request_id. Thread-safe.
std::string NewRequestId();

}  // namespace ringmaster::cli
