#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "coordinator/services/credentials.h"
#include "coordinator/services/permissions.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor_database.h"
#include "tests/coordinator/services/access_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Code = absl::StatusCode;
using v1::Token;

// Of all services that the API's files define, those included that nobody has thought of here.
std::vector<const google::protobuf::MethodDescriptor*> AllMethods() {
  std::vector<std::string> files;
  google::protobuf::DescriptorPool::internal_generated_database()->FindAllFileNames(&files);
  std::vector<const google::protobuf::MethodDescriptor*> methods;
  for (const std::string& name : files) {
    if (name.rfind("ringmaster/", 0) != 0) continue;
    const auto* file = google::protobuf::DescriptorPool::generated_pool()->FindFileByName(name);
    for (int i = 0; i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j) {
        methods.push_back(file->service(i)->method(j));
      }
    }
  }
  return methods;
}

TEST(PermissionsTest, EveryMethodHasOneAndNoOther) {
  const auto methods = AllMethods();
  EXPECT_GE(methods.size(), 25);
  for (const auto* method : methods) {
    EXPECT_NE(FindPermission({method->service()->name().c_str(), method->name().c_str()}), nullptr)
        << method->full_name();
  }
  EXPECT_EQ(Permissions().size(), methods.size());
  EXPECT_EQ(FindPermission({"JobService", "Session"}), nullptr);
}

TEST(PermissionsTest, EachUsersScopeIncludesTheOneBefore) {
  constexpr Token::Scope kUsers[] = {Token::VIEWER, Token::SUBMITTER, Token::OPERATOR,
                                     Token::ADMIN};
  for (const Token::Scope has : kUsers) {
    for (const Token::Scope needed : kUsers) EXPECT_EQ(Includes(has, needed), has >= needed);
    EXPECT_FALSE(Includes(has, Token::WORKER));
    EXPECT_FALSE(Includes(Token::WORKER, has));
    EXPECT_FALSE(Includes(Token::SCOPE_UNSPECIFIED, has));
    EXPECT_FALSE(Includes(static_cast<Token::Scope>(77), has));
    EXPECT_FALSE(Includes(has, Token::SCOPE_UNSPECIFIED));
  }
  EXPECT_TRUE(Includes(Token::WORKER, Token::WORKER));
}

TEST(TokensRequiredTest, BeyondLoopbackUnlessOneInsists) {
  const auto required = [](const std::string& listen, bool tls, bool insecure, bool asked) {
    ServerOptions options;
    options.listen = listen;
    if (tls) options.tls.certificate = "/tls.crt";
    options.insecure_i_understand = insecure;
    options.require_tokens = asked;
    return TokensRequired(options);
  };
  for (const bool tls : {false, true}) {
    EXPECT_FALSE(*required("127.0.0.1:0", tls, false, false));
    EXPECT_FALSE(*required("[::1]:0", tls, true, false));
    EXPECT_TRUE(*required("localhost:0", tls, false, true));
  }
  EXPECT_TRUE(*required("0.0.0.0:0", true, false, false));
  EXPECT_FALSE(*required("0.0.0.0:0", true, true, false));
  EXPECT_FALSE(*required("0.0.0.0:0", false, true, false));
  EXPECT_TRUE(*required("0.0.0.0:0", true, true, true));
  EXPECT_EQ(required("0.0.0.0:0", false, true, true).status().code(), Code::kFailedPrecondition);
}

TEST(TokensRequiredTest, HttpBeyondLoopbackCountsToo) {
  ServerOptions options;
  EXPECT_FALSE(*TokensRequired(options));
  options.http_listen = "0.0.0.0:0";
  EXPECT_TRUE(*TokensRequired(options));
  options.require_tokens = true;
  EXPECT_EQ(TokensRequired(options).status().code(), Code::kFailedPrecondition);
  options.http_listen = "";
  EXPECT_TRUE(*TokensRequired(options));
}

TEST_F(AccessTest, NoTokenNoCall) {
  for (const auto* method : AllMethods()) {
    SCOPED_TRACE(method->full_name());
    Expect(RawCall(method, ""), Code::kUnauthenticated, "TOKEN_MISSING");
    Expect(RawCall(method, "x"), Code::kUnauthenticated, "TOKEN_INVALID");
  }
}

TEST_F(AccessTest, WrongScopeIsRefusedByEveryMethod) {
  for (const Token::Scope scope :
       {Token::VIEWER, Token::SUBMITTER, Token::OPERATOR, Token::ADMIN, Token::WORKER}) {
    const std::string token = Secret(scope);
    for (const auto* method : AllMethods()) {
      SCOPED_TRACE(absl::StrCat(method->full_name(), " as ", Token::Scope_Name(scope)));
      const Permission* needed =
          FindPermission({method->service()->name().c_str(), method->name().c_str()});
      ASSERT_NE(needed, nullptr);
      if (!Includes(scope, needed->scope)) {
        Expect(RawCall(method, token), Code::kPermissionDenied, "SCOPE_TOO_NARROW");
      } else if (!method->client_streaming() && !method->server_streaming()) {
        const absl::Status status = RawCall(method, token);
        EXPECT_FALSE(absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status)) << status;
      }
    }
  }
}

TEST_F(AccessTest, ViewersListAndSubmittersSubmit) {
  const std::string viewer = Secret(Token::VIEWER);
  const std::string submitter = Secret(Token::SUBMITTER);
  EXPECT_TRUE(ListAs(viewer).ok());
  Expect(CreateAs(viewer, "bible"), Code::kPermissionDenied, "SCOPE_TOO_NARROW");
  EXPECT_TRUE(CreateAs(submitter, "bible").ok());
  EXPECT_TRUE(GetAs(viewer, Name("bible")).ok());
}

TEST_F(AccessTest, OtherProjectsAreTheSameWhateverIsInThem) {
  ASSERT_TRUE(CreateAs(admin_, "bible").ok());
  const std::string other = Secret(Token::SUBMITTER, "projects/other");
  const absl::Status there = GetAs(other, Name("bible"));
  const absl::Status absent = GetAs(other, Name("absent"));
  Expect(there, Code::kPermissionDenied, "OTHER_PROJECT");
  EXPECT_EQ(there, absent);
  EXPECT_EQ(there, GetAs(other, "no name at all"));
  EXPECT_EQ(there, GetAs(other, ""));
  EXPECT_EQ(there, GetAs(other, "projects/other-too/trainingJobs/absent"));
  EXPECT_EQ(there, CreateAs(other, "bible"));
  for (const char* parent : {"", "projects/default", "projects/-", "projects/"}) {
    EXPECT_EQ(there, ListAs(other, parent)) << parent;
  }
  EXPECT_TRUE(ListAs(other, "projects/other").ok());
  EXPECT_EQ(GetAs(other, "projects/other/trainingJobs/absent").code(), Code::kNotFound);
  v1::UpdateTrainingJobRequest update;
  update.mutable_training_job()->set_name(Name("bible"));
  v1::TrainingJob job;
  EXPECT_EQ(there, CallAs(other, &v1::JobService::Stub::UpdateTrainingJob, jobs_, update, &job));
  v1::ListWorkersResponse workers;
  EXPECT_EQ(there, CallAs(other, &v1::ClusterService::Stub::ListWorkers, cluster_,
                          v1::ListWorkersRequest(), &workers));
  // An estimate is about nothing that is stored.
  v1::EstimateTrainingJobRequest estimate;
  v1::EstimateTrainingJobResponse estimated;
  EXPECT_EQ(
      CallAs(other, &v1::JobService::Stub::EstimateTrainingJob, jobs_, estimate, &estimated).code(),
      Code::kInvalidArgument);
  // A watch of the own project and another project's job at once is one of the job.
  v1::WatchTrainingJobsRequest watch;
  watch.set_parent("projects/other");
  watch.set_name(Name("bible"));
  grpc::ClientContext context;
  Show(context, other);
  auto stream = jobs_->WatchTrainingJobs(&context, watch);
  v1::WatchTrainingJobsResponse message;
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_EQ(there, FromGrpc(stream->Finish()));
}

TEST_F(AccessTest, WhoIsBoundToAProjectSeesItsQueuesAndNoOthers) {
  const auto make = [&](const std::string& token, const std::string& id) {
    v1::CreateQueueRequest request;
    request.set_queue_id(id);
    request.mutable_queue()->add_projects("projects/" + id);
    v1::Queue queue;
    return CallAs(token, &v1::QueueService::Stub::CreateQueue, queues_, request, &queue);
  };
  ASSERT_TRUE(make(admin_, "vision").ok());
  ASSERT_TRUE(make(admin_, "speech").ok());
  Expect(make(Secret(Token::OPERATOR), "mine"), Code::kPermissionDenied, "SCOPE_TOO_NARROW");
  const std::string vision = Secret(Token::SUBMITTER, "projects/vision");
  std::vector<std::string> names;
  const auto list = [&](const std::string& parent) {
    v1::ListQueuesRequest request;
    request.set_parent(parent);
    v1::ListQueuesResponse reply;
    const absl::Status status =
        CallAs(vision, &v1::QueueService::Stub::ListQueues, queues_, request, &reply);
    for (const v1::Queue& queue : reply.queues()) names.push_back(queue.name());
    return status;
  };
  EXPECT_TRUE(list("projects/vision").ok());
  EXPECT_THAT(names, ElementsAre("queues/default", "queues/vision"));
  for (const char* parent : {"", "projects/-", "projects/speech"}) {
    Expect(list(parent), Code::kPermissionDenied, "OTHER_PROJECT");
  }
  // Nor whether there is one.
  for (const char* name : {"queues/vision", "queues/absent"}) {
    v1::GetQueueRequest request;
    request.set_name(name);
    v1::Queue queue;
    Expect(CallAs(vision, &v1::QueueService::Stub::GetQueue, queues_, request, &queue),
           Code::kPermissionDenied, "OTHER_PROJECT");
  }
  for (const char* queue : {"vision", "speech", "absent"}) {
    v1::CreateTrainingJobRequest request = CreateRequest(std::string("in-") + queue);
    request.set_parent("projects/vision");
    request.mutable_training_job()->mutable_spec()->set_queue(queue);
    v1::TrainingJob job;
    const absl::Status status =
        CallAs(vision, &v1::JobService::Stub::CreateTrainingJob, jobs_, request, &job);
    if (std::string(queue) == "vision") {
      EXPECT_TRUE(status.ok()) << status;
    } else {
      Expect(status, Code::kPermissionDenied, "QUEUE_NOT_OPEN");
    }
  }
}

TEST_F(AccessTest, RevokedTokenOpensNothing) {
  const v1::CreateTokenResponse made = Make(Token::VIEWER);
  EXPECT_TRUE(ListAs(made.secret()).ok());
  ASSERT_TRUE(Revoke(made.token().name()).ok());
  Expect(ListAs(made.secret()), Code::kUnauthenticated, "TOKEN_REVOKED");
  EXPECT_TRUE(Revoke(made.token().name()).ok());
  EXPECT_EQ(Revoke("tokens/absent").code(), Code::kNotFound);
  // Only who has the text is told that it was good once.
  Expect(ListAs(made.secret().substr(0, made.secret().size() - 1) + "x"), Code::kUnauthenticated,
         "TOKEN_INVALID");
}

TEST_F(AccessTest, RevokedTokenEndsTheStreamsThatItOpened) {
  const v1::CreateTokenResponse viewer = Make(Token::VIEWER);
  const v1::CreateTokenResponse worker = Make(Token::WORKER);
  ASSERT_TRUE(CreateAs(admin_, "bible").ok());
  grpc::ClientContext watch_context;
  Show(watch_context, viewer.secret());
  auto watch = jobs_->WatchTrainingJobs(&watch_context, v1::WatchTrainingJobsRequest());
  v1::WatchTrainingJobsResponse change;
  do {
    ASSERT_TRUE(watch->Read(&change));
  } while (!change.has_synced());
  v1::StreamTrainingJobLogsRequest follow;
  follow.set_name(Name("bible"));
  follow.set_follow(true);
  grpc::ClientContext logs_context;
  Show(logs_context, viewer.secret());
  auto logs = jobs_->StreamTrainingJobLogs(&logs_context, follow);
  logs->WaitForInitialMetadata();
  grpc::ClientContext session_context;
  Show(session_context, worker.secret());
  auto session = workers_->Session(&session_context);
  v1::WorkerReport hello;
  hello.set_incarnation(std::string(32, 'a'));
  hello.mutable_hello()->set_worker("workers/w-0");
  hello.mutable_hello()->mutable_hardware()->set_device(v1::CPU);
  ASSERT_TRUE(session->Write(hello));
  v1::Directive directive;
  ASSERT_TRUE(session->Read(&directive));

  ASSERT_TRUE(Revoke(viewer.token().name()).ok());
  while (watch->Read(&change)) continue;
  Expect(FromGrpc(watch->Finish()), Code::kUnauthenticated, "TOKEN_REVOKED");
  v1::StreamTrainingJobLogsResponse lines;
  while (logs->Read(&lines)) continue;
  Expect(FromGrpc(logs->Finish()), Code::kUnauthenticated, "TOKEN_REVOKED");
  ASSERT_TRUE(Revoke(worker.token().name()).ok());
  while (session->Read(&directive)) continue;
  Expect(FromGrpc(session->Finish()), Code::kUnauthenticated, "TOKEN_REVOKED");
}

// A worker that never reads: the coordinator's first directive is written to the end never.
TEST_F(AccessTest, RevokedTokenEndsASessionThatIsNotRead) {
  const v1::CreateTokenResponse worker = Make(Token::WORKER);
  const auto stub = v1::WorkerService::NewStub(DialWithoutReading());
  grpc::ClientContext context;
  Show(context, worker.secret());
  const auto session = stub->Session(&context);
  const auto hello = [](const std::string& name, char incarnation) {
    v1::WorkerReport report;
    report.set_incarnation(std::string(32, incarnation));
    report.mutable_hello()->set_worker("workers/" + name);
    report.mutable_hello()->mutable_hardware()->set_device(v1::CPU);
    return report;
  };
  const auto worker_names = [&] {
    v1::ListWorkersResponse workers;
    EXPECT_TRUE(CallAs(admin_, &v1::ClusterService::Stub::ListWorkers, cluster_,
                       v1::ListWorkersRequest(), &workers)
                    .ok());
    std::vector<std::string> names;
    for (const v1::Worker& each : workers.workers()) names.push_back(each.name());
    return names;
  };
  ASSERT_TRUE(session->Write(hello("before", 'a')));
  while (worker_names().empty()) continue;
  ASSERT_TRUE(Revoke(worker.token().name()).ok());
  while (session->Write(hello("after", 'b'))) continue;
  // gRPC tells how a call ended once what it has of it is read.
  v1::Directive directive;
  while (session->Read(&directive)) continue;
  EXPECT_EQ(session->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_THAT(worker_names(), ElementsAre("workers/before"));
}

TEST_F(AccessTest, ExpiredTokenOpensNothing) {
  const std::string token = Make(Token::VIEWER, "", 3600).secret();
  EXPECT_TRUE(ListAs(token).ok());
  ahead_ = 3601;
  Expect(ListAs(token), Code::kUnauthenticated, "TOKEN_EXPIRED");
}

TEST_F(AccessTest, ExpiredTokenEndsTheStreamsThatItOpened) {
  // The later one first: the time of the other comes between.
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::WatchTrainingJobsResponse>>> watches;
  v1::WatchTrainingJobsResponse change;
  for (const int seconds : {2, 1}) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    Show(*contexts.back(), Make(Token::VIEWER, "", seconds).secret());
    watches.push_back(
        jobs_->WatchTrainingJobs(contexts.back().get(), v1::WatchTrainingJobsRequest()));
    (void)watches.back()->Read(&change);  // On a slow machine it has ended by now.
  }
  for (const auto& watch : watches) {
    while (watch->Read(&change)) continue;
    Expect(FromGrpc(watch->Finish()), Code::kUnauthenticated, "TOKEN_EXPIRED");
  }
}

// As that of a machine which was suspended: the steady clock has not seen the hour.
TEST_F(AccessTest, SlowClockLetsNoTokenLiveLonger) {
  const std::string token = Make(Token::VIEWER, "", 1).secret();
  ahead_ = -3600;
  Restart();
  absl::Status status;
  for (const absl::Time end = absl::Now() + absl::Seconds(30); status.ok() && absl::Now() < end;) {
    status = ListAs(token);
  }
  Expect(status, Code::kUnauthenticated, "TOKEN_EXPIRED");
}

TEST_F(AccessTest, BadRequestsForTokens) {
  const auto refused = [&](auto spoil) {
    v1::CreateTokenRequest request;
    request.set_display_name("a test");
    request.set_scope(Token::VIEWER);
    spoil(request);
    v1::CreateTokenResponse made;
    const absl::Status status =
        CallAs(admin_, &v1::TokenService::Stub::CreateToken, tokens_, request, &made);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status;
    const auto fields = Details(status).fields;
    return fields.empty() ? "" : fields[0].field;
  };
  using Request = v1::CreateTokenRequest;
  EXPECT_EQ(refused([](Request& r) { r.clear_display_name(); }), "display_name");
  EXPECT_EQ(refused([](Request& r) { r.set_display_name(std::string(129, 'x')); }), "display_name");
  EXPECT_EQ(refused([](Request& r) { r.set_display_name("a\nb"); }), "display_name");
  EXPECT_EQ(refused([](Request& r) { r.clear_scope(); }), "scope");
  EXPECT_EQ(refused([](Request& r) { r.set_scope(static_cast<Token::Scope>(77)); }), "scope");
  EXPECT_EQ(refused([](Request& r) { r.set_project("other"); }), "project");
  EXPECT_EQ(refused([](Request& r) { r.set_project("projects/-"); }), "project");
  for (const Token::Scope scope : {Token::OPERATOR, Token::ADMIN, Token::WORKER}) {
    EXPECT_EQ(refused([&](Request& r) {
                r.set_scope(scope);
                r.set_project("projects/other");
              }),
              "project");
  }
  EXPECT_EQ(refused([](Request& r) { r.mutable_ttl(); }), "ttl");
  EXPECT_EQ(refused([](Request& r) { r.mutable_ttl()->set_seconds(-1); }), "ttl");
  EXPECT_EQ(refused([](Request& r) { r.mutable_ttl()->set_seconds(1ll << 60); }), "ttl");
}

TEST_F(AccessTest, TokensSurviveARestartAndTheirTextIsNowhere) {
  const v1::CreateTokenResponse made = Make(Token::SUBMITTER, "projects/default", 3600);
  const v1::CreateTokenResponse revoked = Make(Token::VIEWER);
  ASSERT_TRUE(Revoke(revoked.token().name()).ok());
  const std::string admin = admin_;
  Restart();
  EXPECT_EQ(admin_, admin);
  EXPECT_TRUE(CreateAs(made.secret(), "bible").ok());
  Expect(ListAs(revoked.secret()), Code::kUnauthenticated, "TOKEN_REVOKED");
  v1::ListTokensResponse list;
  ASSERT_TRUE(
      CallAs(admin_, &v1::TokenService::Stub::ListTokens, tokens_, v1::ListTokensRequest(), &list)
          .ok());
  ASSERT_EQ(list.tokens_size(), 3);
  EXPECT_EQ(list.tokens(0).scope(), Token::ADMIN);
  EXPECT_EQ(list.tokens(1).SerializeAsString(), made.token().SerializeAsString());
  EXPECT_EQ(list.tokens(1).last_four(), made.secret().substr(made.secret().size() - 4));
  EXPECT_TRUE(list.tokens(2).has_revoke_time());
  const std::string secret = made.secret().substr(made.secret().rfind('_') + 1);
  EXPECT_EQ(secret.size(), 64);
  for (const char* file : {"coordinator.db", "coordinator.db-wal"}) {
    EXPECT_THAT(FileText(temporary_.path() + "/data/" + file), Not(HasSubstr(secret))) << file;
  }
}

TEST_F(AccessTest, FirstAdministratorsTokenIsForTheOwnerOfTheDirectory) {
  struct stat status = {};
  ASSERT_EQ(stat(AdminFile().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600);
  const std::string first = admin_;
  // It is made again when no administrator is left.
  v1::ListTokensResponse list;
  ASSERT_TRUE(
      CallAs(admin_, &v1::TokenService::Stub::ListTokens, tokens_, v1::ListTokensRequest(), &list)
          .ok());
  ASSERT_TRUE(Revoke(list.tokens(0).name()).ok());
  Restart();
  EXPECT_NE(admin_, first);
  Expect(ListAs(first), Code::kUnauthenticated, "TOKEN_REVOKED");
  EXPECT_TRUE(ListAs(admin_).ok());
}

// Nothing keeps the text of the first administrator's token: then there must be no such token.
TEST_F(AccessTest, TokenWhoseTextWasNotWrittenIsNotThere) {
  server_.reset();
  std::filesystem::remove_all(temporary_.path() + "/data");
  std::filesystem::create_directories(AdminFile() + "/in-the-way");
  ServerOptions options = Options();
  options.require_tokens = true;
  Start(options);
  server_.reset();
  std::filesystem::remove_all(AdminFile());
  // Of a start that was cut short between the two.
  std::ofstream(AdminFile()) << "rmt_0123456789ab_" << std::string(64, '0') << "\n";
  Restart();
  v1::ListTokensResponse list;
  ASSERT_TRUE(
      CallAs(admin_, &v1::TokenService::Stub::ListTokens, tokens_, v1::ListTokensRequest(), &list)
          .ok());
  EXPECT_EQ(list.tokens_size(), 1);
}

// Who asks for no tokens lets everybody in, whatever they show.
TEST_F(AccessTest, LoopbackNeedsNoToken) {
  server_.reset();
  Start();
  EXPECT_TRUE(ListAs("").ok());
  EXPECT_TRUE(ListAs("x").ok());
  EXPECT_TRUE(ListAs(admin_).ok());
}

// Anybody could, and would be one still when tokens are asked for.
TEST_F(AccessTest, LoopbackWithoutTokensMakesNoAdministrators) {
  server_.reset();
  Start();
  tokens_ = v1::TokenService::NewStub(channel_);
  v1::CreateTokenRequest request;
  request.set_display_name("a test");
  request.set_scope(Token::ADMIN);
  v1::CreateTokenResponse made;
  const auto create = [&] {
    return CallAs("", &v1::TokenService::Stub::CreateToken, tokens_, request, &made);
  };
  Expect(create(), Code::kFailedPrecondition, "TOKENS_NOT_REQUIRED");
  request.set_scope(Token::OPERATOR);
  EXPECT_TRUE(create().ok());
}

}  // namespace
}  // namespace ringmaster::coordinator
