#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/read_file.h"
#include "google/protobuf/descriptor.h"
#include "grpcpp/generic/generic_stub.h"
#include "ringmaster/v1/token_service.grpc.pb.h"
#include "tests/coordinator/services/test_server.h"

namespace ringmaster::coordinator {

// Empty when there is no such file.
inline std::string FileText(const std::string& path) { return ReadFile(path).value_or(""); }

// A coordinator that asks for tokens.
class AccessTest : public ServerTest {
 protected:
  AccessTest() { Restart(); }
  // Its clock is here.
  ~AccessTest() override { server_.reset(); }

  void Restart() {
    server_.reset();
    ServerOptions options = Options();
    options.require_tokens = true;
    options.now = [this] { return absl::Now() + absl::Seconds(ahead_.load()); };
    Start(options);
    tokens_ = v1::TokenService::NewStub(channel_);
    admin_ = FileText(AdminFile());
    admin_ = admin_.substr(0, admin_.find('\n'));
  }

  std::string AdminFile() const { return temporary_.path() + "/data/admin-token"; }

  static void Show(grpc::ClientContext& context, const std::string& token) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  }

  template <typename Stub, typename Request, typename Reply>
  static absl::Status CallAs(const std::string& token,
                             grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                          Reply*),
                             const std::unique_ptr<Stub>& stub, const Request& request,
                             Reply* reply) {
    grpc::ClientContext context;
    Show(context, token);
    return FromGrpc((stub.get()->*method)(&context, request, reply));
  }

  v1::CreateTokenResponse Make(v1::Token::Scope scope, const std::string& project = "",
                               int64_t ttl_seconds = 0) {
    v1::CreateTokenRequest request;
    request.set_display_name("a test");
    request.set_scope(scope);
    request.set_project(project);
    if (ttl_seconds > 0) request.mutable_ttl()->set_seconds(ttl_seconds);
    v1::CreateTokenResponse made;
    const absl::Status status =
        CallAs(admin_, &v1::TokenService::Stub::CreateToken, tokens_, request, &made);
    EXPECT_TRUE(status.ok()) << status;
    return made;
  }
  std::string Secret(v1::Token::Scope scope, const std::string& project = "") {
    return Make(scope, project).secret();
  }
  absl::Status Revoke(const std::string& name) {
    v1::RevokeTokenRequest request;
    request.set_name(name);
    v1::Token revoked;
    return CallAs(admin_, &v1::TokenService::Stub::RevokeToken, tokens_, request, &revoked);
  }

  absl::Status CreateAs(const std::string& token, const std::string& id) {
    v1::TrainingJob job;
    return CallAs(token, &v1::JobService::Stub::CreateTrainingJob, jobs_, CreateRequest(id), &job);
  }
  absl::Status GetAs(const std::string& token, const std::string& name) {
    v1::GetTrainingJobRequest request;
    request.set_name(name);
    v1::TrainingJob job;
    return CallAs(token, &v1::JobService::Stub::GetTrainingJob, jobs_, request, &job);
  }
  absl::Status ListAs(const std::string& token, const std::string& parent = "") {
    v1::ListTrainingJobsRequest request;
    request.set_parent(parent);
    v1::ListTrainingJobsResponse reply;
    return CallAs(token, &v1::JobService::Stub::ListTrainingJobs, jobs_, request, &reply);
  }

  // How any method ends that is given an empty message.
  absl::Status RawCall(const google::protobuf::MethodDescriptor* method, const std::string& token) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    Show(context, token);
    grpc::CompletionQueue queue;
    const auto wait = [&] {
      void* tag = nullptr;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    auto call = stub.PrepareCall(
        &context, "/" + method->service()->full_name() + "/" + method->name(), &queue);
    call->StartCall(nullptr);
    wait();
    const grpc::Slice empty("", 0);
    call->Write(grpc::ByteBuffer(&empty, 1), nullptr);
    wait();
    call->WritesDone(nullptr);
    wait();
    grpc::ByteBuffer answer;
    do {
      call->Read(&answer, nullptr);
    } while (wait());
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    return FromGrpc(status);
  }

  static void Expect(const absl::Status& status, absl::StatusCode code, const std::string& reason) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(Details(status).reason, reason) << status;
    EXPECT_EQ(Details(status).domain, kErrorDomain);
  }

  // Of the coordinator's clock, in seconds.
  std::atomic<int> ahead_ = 0;
  std::string admin_;
  std::unique_ptr<v1::TokenService::Stub> tokens_;
};

}  // namespace ringmaster::coordinator
