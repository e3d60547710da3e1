#include "cli/client.h"

#include <cstdint>
#include <cstdlib>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "cli/retry_stream.h"
#include "grpcpp/create_channel.h"
#include "proto/client_credentials.h"
#include "proto/rpc_status.h"

namespace ringmaster::cli {
namespace {

// Reads are safe to repeat, and a create is made so by its request_id.
constexpr char kServiceConfig[] = R"({"methodConfig": [{
  "name": [{"service": "ringmaster.v1.JobService", "method": "GetTrainingJob"},
           {"service": "ringmaster.v1.JobService", "method": "ListTrainingJobs"},
           {"service": "ringmaster.v1.JobService", "method": "CreateTrainingJob"},
           {"service": "ringmaster.v1.JobService", "method": "EstimateTrainingJob"},
           {"service": "ringmaster.v1.ClusterService"},
           {"service": "ringmaster.v1.QueueService", "method": "GetQueue"},
           {"service": "ringmaster.v1.QueueService", "method": "ListQueues"},
           {"service": "ringmaster.v1.QueueService", "method": "UpdateQueue"},
           {"service": "ringmaster.v1.CheckpointService", "method": "ListCheckpoints"},
           {"service": "ringmaster.v1.CheckpointService", "method": "GetCheckpoint"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s",
                  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]})";

// For one of several attempts.
constexpr absl::Duration kConnectPatience = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const GlobalOptions& options) {
  // Not a flag's value: everybody on the machine may read a program's arguments.
  const char* const token = std::getenv("RINGMASTER_TOKEN");
  ASSIGN_OR_RETURN(
      auto credentials,
      ClientCredentials(
          options.address,
          {.ca = options.tls_ca, .certificate = options.tls_cert, .key = options.tls_key},
          {.file = options.token_file, .text = token == nullptr ? "" : token}));
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  // A watch must notice that the coordinator's host is gone.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // By default the third ping would wait until data is sent; a watch sends none.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Who follows a job pauses by itself, and must notice that the coordinator is back.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  // A proxy of the environment would hand the token on in the clear.
  if (options.tls_ca.empty()) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto channel = grpc::CreateCustomChannel(options.address, credentials, arguments);
  return std::unique_ptr<Client>(new Client(options, std::move(channel)));
}

Client::Client(GlobalOptions options, std::shared_ptr<grpc::Channel> channel)
    : options_(std::move(options)),
      channel_(std::move(channel)),
      jobs_(v1::JobService::NewStub(channel_)),
      cluster_(v1::ClusterService::NewStub(channel_)),
      checkpoints_(v1::CheckpointService::NewStub(channel_)),
      queues_(v1::QueueService::NewStub(channel_)),
      tokens_(v1::TokenService::NewStub(channel_)) {}

void Client::Prepare(grpc::ClientContext* context) const {
  context->set_deadline(absl::ToChronoTime(absl::Now() + options_.timeout));
}

std::string Client::JobName(const std::string& job) const {
  return absl::StrContains(job, '/') ? job : absl::StrCat(Parent(), "/trainingJobs/", job);
}

absl::Status Client::ReadStream(const std::string& job, bool follow, std::ostream& err,
                                const std::function<absl::Status(bool& answered)>& read) {
  if (!answered_) {
    v1::GetTrainingJobRequest request;
    request.set_name(job);
    v1::TrainingJob found;
    RETURN_IF_ERROR(Call(&v1::JobService::Stub::GetTrainingJob, jobs(), request, &found));
  }
  if (!follow) {
    bool answered = false;
    return read(answered);
  }
  const auto connect = [this] {
    if (channel_->WaitForConnected(absl::ToChronoTime(absl::Now() + kConnectPatience))) {
      return absl::OkStatus();
    }
    return Translate({grpc::StatusCode::UNAVAILABLE, "no connection"});
  };
  return RetryStream(connect, read, err);
}

absl::Status Client::Translate(const grpc::Status& status) const {
  if (status.ok()) {
    return absl::OkStatus();
  }
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty()) {
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options_.address, " (",
                                               status.error_message(),
                                               "); set --address or RINGMASTER_ADDRESS"));
  }
  const ErrorDetails details = Details(status);
  std::string message = status.error_message();
  if (details.reason == "TOKEN_MISSING") {
    message = "the coordinator asks for a token; set --token-file or RINGMASTER_TOKEN_FILE";
  }
  // Of several violations the message may have left some out.
  for (const v1::ShapeViolation& shape : details.shapes) {
    const std::string nearest = absl::StrJoin(shape.nearest_valid(), ", ");
    if (!nearest.empty() && !absl::StrContains(message, absl::StrCat("nearest valid: ", nearest))) {
      absl::StrAppend(&message, "; nearest valid for ", shape.field(), ": ", nearest);
    }
  }
  return absl::Status(FromGrpc(status).code(), message);
}

std::string NewRequestId() {
  std::random_device entropy;
  std::uniform_int_distribution<uint64_t> bits;
  uint64_t high = bits(entropy);
  uint64_t low = bits(entropy);
  high = (high & ~0xF000ull) | 0x4000ull;
  low = (low & ~(3ull << 62)) | (2ull << 62);
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", high >> 32, (high >> 16) & 0xFFFF,
                         high & 0xFFFF, low >> 48, low & 0xFFFFFFFFFFFFull);
}

}  // namespace ringmaster::cli
