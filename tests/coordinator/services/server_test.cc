#include "coordinator/services/server.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "tests/coordinator/services/test_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class RunningServerTest : public ServerTest {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::WorkerReport, v1::Directive>;

  static v1::WorkerReport Hello(const std::string& worker, const std::string& incarnation) {
    v1::WorkerReport report;
    report.set_incarnation(incarnation);
    report.mutable_hello()->set_worker("workers/" + worker);
    report.mutable_hello()->mutable_hardware()->set_device(v1::CPU);
    report.mutable_hello()->mutable_hardware()->set_threads(1);
    report.mutable_hello()->mutable_hardware()->add_transports("ucx/1.13");
    return report;
  }
  static v1::Directive MustRead(Stream& stream) {
    v1::Directive directive;
    EXPECT_TRUE(stream.Read(&directive));
    return directive;
  }
};

TEST_F(RunningServerTest, WorkerAttachesBeatsAndIsListed) {
  grpc::ClientContext context;
  auto stream = workers_->Session(&context);
  const std::string incarnation(32, 'a');
  ASSERT_TRUE(stream->Write(Hello("w-0", incarnation)));
  const v1::Directive welcome = MustRead(*stream);
  ASSERT_TRUE(welcome.has_welcome());
  EXPECT_EQ(welcome.epoch(), 1);
  for (int sequence = 1; sequence <= 50; ++sequence) {
    v1::WorkerReport beat;
    beat.set_incarnation(incarnation);
    beat.mutable_heartbeat()->set_sequence(sequence);
    ASSERT_TRUE(stream->Write(beat));
  }
  for (int sequence = 1; sequence <= 50; ++sequence) {
    EXPECT_EQ(MustRead(*stream).heartbeat_ack().sequence(), sequence);
  }
  v1::ListWorkersResponse workers;
  ASSERT_TRUE(
      Call(&v1::ClusterService::Stub::ListWorkers, cluster_, v1::ListWorkersRequest(), &workers)
          .ok());
  ASSERT_EQ(workers.workers_size(), 1);
  EXPECT_EQ(workers.workers(0).name(), "workers/w-0");
  EXPECT_EQ(workers.workers(0).state(), v1::Worker::IDLE);

  // Its supervisor says that it died.
  v1::ReportFaultRequest exit;
  exit.set_worker("workers/w-0");
  exit.set_incarnation(incarnation);
  exit.set_signal(9);
  v1::ReportFaultResponse reply;
  EXPECT_TRUE(Call(&v1::WorkerService::Stub::ReportFault, workers_, exit, &reply).ok());
  v1::GetWorkerRequest get;
  get.set_name("workers/w-0");
  v1::Worker worker;
  ASSERT_TRUE(Call(&v1::ClusterService::Stub::GetWorker, cluster_, get, &worker).ok());
  EXPECT_EQ(worker.state(), v1::Worker::LOST);
}

// The jobs' directories are told to workers, who started elsewhere.
TEST_F(RunningServerTest, RelativeDirectoriesAreOfItsWorkingDirectory) {
  server_.reset();
  ServerOptions options = Options();
  options.shared_directory = "some/../shared";
  Start(options);
  const absl::StatusOr<v1::TrainingJob> job = Create(CreateRequest("job-a"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->spec().directory(),
              StartsWith((std::filesystem::current_path() / "shared/default/job-a-").string()));
}

TEST_F(RunningServerTest, NewerStreamOfAWorkerEndsTheOlderOne) {
  grpc::ClientContext first_context;
  auto first = workers_->Session(&first_context);
  ASSERT_TRUE(first->Write(Hello("w-0", std::string(32, 'a'))));
  EXPECT_TRUE(MustRead(*first).has_welcome());
  grpc::ClientContext second_context;
  auto second = workers_->Session(&second_context);
  ASSERT_TRUE(second->Write(Hello("w-0", std::string(32, 'a'))));
  EXPECT_TRUE(MustRead(*second).has_welcome());
  v1::Directive directive;
  while (first->Read(&directive)) EXPECT_TRUE(directive.has_die());
  EXPECT_EQ(FromGrpc(first->Finish()).code(), absl::StatusCode::kAborted);
}

// It does not read WORKER_TOO_SLOW either.
TEST_F(RunningServerTest, WorkerThatReadsNoDirectivesIsCutOff) {
  const auto stub = v1::WorkerService::NewStub(DialWithoutReading());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
  const auto stream = stub->Session(&context);
  v1::WorkerReport report = Hello("w-0", std::string(32, 'a'));
  for (int sequence = 1; stream->Write(report); ++sequence) {
    report.mutable_heartbeat()->set_sequence(sequence);
  }
  v1::Directive directive;
  while (stream->Read(&directive)) continue;
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(RunningServerTest, IdleWorkerIsTakenForAQueuedJob) {
  grpc::ClientContext context;
  auto stream = workers_->Session(&context);
  ASSERT_TRUE(stream->Write(Hello("w-0", std::string(32, 'a'))));
  EXPECT_TRUE(MustRead(*stream).has_welcome());
  const absl::StatusOr<v1::TrainingJob> job = Create(CreateRequest("bible"));
  ASSERT_TRUE(job.ok());
  const v1::Directive form = MustRead(*stream);
  ASSERT_TRUE(form.has_form_ring()) << form.DebugString();
  EXPECT_EQ(form.form_ring().ring().training_job(), Name("bible"));
  EXPECT_EQ(form.form_ring().directory(), job->spec().directory());
  EXPECT_EQ(Get("bible")->status().state(), v1::TrainingJobStatus::STARTING);
}

TEST_F(RunningServerTest, DrainAnswersWhatWasAcceptedAndEndsStreams) {
  grpc::ClientContext watch_context;
  auto watch = jobs_->WatchTrainingJobs(&watch_context, v1::WatchTrainingJobsRequest());
  v1::WatchTrainingJobsResponse message;
  ASSERT_TRUE(watch->Read(&message));
  EXPECT_TRUE(message.has_synced());
  grpc::ClientContext session_context;
  auto session = workers_->Session(&session_context);
  ASSERT_TRUE(session->Write(Hello("w-0", std::string(32, 'a'))));
  EXPECT_TRUE(MustRead(*session).has_welcome());
  EXPECT_THAT(HttpGet(server_->http_address(), "/readyz"), HasSubstr("200 OK"));

  server_->Drain();
  EXPECT_FALSE(watch->Read(&message));
  const absl::Status watch_end = FromGrpc(watch->Finish());
  EXPECT_EQ(watch_end.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Details(watch_end).retry_delay.has_value());
  v1::Directive directive;
  EXPECT_FALSE(session->Read(&directive));
  EXPECT_EQ(FromGrpc(session->Finish()).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(HttpGet(server_->http_address(), "/readyz"), HasSubstr("503"));
  EXPECT_THAT(HttpGet(server_->http_address(), "/healthz"), HasSubstr("200 OK"));
}

TEST_F(RunningServerTest, HttpShowsMetricsHealthAndStatus) {
  ASSERT_TRUE(Create(CreateRequest("bible")).ok());
  EXPECT_EQ(Get("none").status().code(), absl::StatusCode::kNotFound);
  const std::string metrics = HttpGet(server_->http_address(), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("200 OK"));
  EXPECT_THAT(metrics, HasSubstr("ringmaster_build_info{"));
  EXPECT_THAT(
      metrics,
      HasSubstr("ringmaster_grpc_requests_total{code=\"NOT_FOUND\",method=\"GetTrainingJob\","
                "service=\"JobService\"} 1"));
  EXPECT_THAT(HttpGet(server_->http_address(), "/healthz"), HasSubstr("ok"));
  EXPECT_THAT(HttpGet(server_->http_address(), "/"), HasSubstr(">default/bible</a>"));
  EXPECT_THAT(HttpGet(server_->http_address(), "/etc/passwd"), HasSubstr("404"));
}

// A browser takes a site for the one that its name says, wherever that leads.
TEST_F(RunningServerTest, WithoutTokensPagesAreForWhoAsksForLoopback) {
  const auto page = [&](const std::string& path, const std::string& host) {
    return HttpGet(server_->http_address(), path, /*authorization=*/"", host);
  };
  for (const std::string& host : {server_->http_address(), std::string("localhost:7078"),
                                  std::string("[::1]:7078"), std::string("localhost")}) {
    EXPECT_THAT(page("/", host), HasSubstr("200 OK")) << host;
  }
  for (const char* host :
       {"evil.example", "localhost.evil.example:7078", "127.evil.example", "", "x"}) {
    EXPECT_THAT(page("/", host), StartsWith("HTTP/1.1 403")) << host;
    EXPECT_THAT(page("/metrics", host), StartsWith("HTTP/1.1 403")) << host;
    EXPECT_THAT(page("/healthz", host), HasSubstr("200 OK")) << host;
  }
}

// One message to any method and its first answer, as bytes: for the services that gRPC brings.
std::string RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& message) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok) && ok) << method;
  };
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  wait();
  const grpc::Slice slice(message);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  wait();
  call->WritesDone(nullptr);
  wait();
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  wait();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices)
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  return bytes;
}

TEST_F(RunningServerTest, HealthServiceAndReflectionAnswer) {
  // HealthCheckResponse{status: SERVING}.
  EXPECT_EQ(RawCall(channel_, "/grpc.health.v1.Health/Check", ""), "\x08\x01");
  // ServerReflectionRequest{list_services: ""}.
  const std::string services =
      RawCall(channel_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              std::string("\x3A\x00", 2));
  for (const char* service :
       {"JobService", "ClusterService", "CheckpointService", "WorkerService"}) {
    EXPECT_THAT(services, HasSubstr(absl::StrCat("ringmaster.v1.", service)));
  }
}

TEST_F(RunningServerTest, TellsWhereItListens) {
  std::ifstream file(temporary_.path() + "/data/address");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(text, server_->address() + "\n" + server_->http_address() + "\n");
}

TEST_F(RunningServerTest, TakenPortsAndDirectoriesAreErrors) {
  EXPECT_EQ(Server::Start(Options()).status().code(), absl::StatusCode::kFailedPrecondition);
  ServerOptions options = Options();
  options.data_directory = temporary_.path() + "/other";
  options.listen = server_->address();
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kUnavailable);
  options = Options();
  options.data_directory = temporary_.path() + "/other";
  options.http_listen = server_->http_address();
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kUnavailable);
}

// After a machine's clock was set back, the steady clock of a coordinator that started before is
// ahead of the clients' deadlines.
TEST_F(RunningServerTest, DeadlinesOutliveAStepOfTheClock) {
  server_.reset();
  ServerOptions options = Options();
  options.now = [] { return absl::Now() + absl::Hours(1); };
  Start(options);
  EXPECT_TRUE(Create(CreateRequest("bible")).ok());
}

TEST(ServerStartTest, ListeningBeyondLoopbackNeedsTlsOrTheFlag) {
  const TemporaryDirectory temporary;
  ServerOptions options;
  options.data_directory = temporary.path() + "/data";
  options.http_listen = "";
  for (const char* address : {"0.0.0.0:0", "[::]:0", "10.1.2.3:0", "example.org:0"}) {
    options.listen = address;
    const absl::Status status = Server::Start(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--insecure-i-understand"));
  }
  options.listen = "127.evil.example:0";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kFailedPrecondition);
  for (const char* address : {"", "7077", ":7077", "localhost", "localhost:x", "localhost:70770"}) {
    options.listen = address;
    EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
  options.listen = "127.0.0.1:0";
  for (const char* address : {"0.0.0.0:0", "127.0.0.1:0,0.0.0.0:0"}) {
    options.http_listen = address;
    EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kFailedPrecondition)
        << address;
  }
  options.http_listen = "0.0.0.0:0";
  options.insecure_i_understand = true;
  options.listen = "0.0.0.0:0";
  EXPECT_TRUE(Server::Start(options).ok());
  for (const std::string& no_file : {std::string("/nowhere.pem"), temporary.path()}) {
    options.tls.certificate = no_file;
    EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace ringmaster::coordinator
