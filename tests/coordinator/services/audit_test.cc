#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "coordinator/services/audit_log.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "tests/coordinator/services/access_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using v1::Token;

std::vector<store::AuditRecord> RecordsIn(const std::string& path) {
  std::vector<store::AuditRecord> records;
  for (const auto line : absl::StrSplit(FileText(path), '\n', absl::SkipEmpty())) {
    records.emplace_back();
    EXPECT_TRUE(
        google::protobuf::util::JsonStringToMessage(std::string(line), &records.back()).ok())
        << line;
  }
  return records;
}

class AuditTest : public AccessTest {
 protected:
  std::string File() const { return temporary_.path() + "/data/audit.jsonl"; }

  // What was written since the last time, and by whom: "token method resource outcome reason". The
  // coordinator starts again.
  std::vector<std::string> Lines() {
    server_.reset();
    std::vector<std::string> lines;
    const std::vector<store::AuditRecord> records = RecordsIn(File());
    for (size_t i = seen_; i < records.size(); ++i) {
      EXPECT_TRUE(records[i].has_time());
      EXPECT_THAT(records[i].peer(), StartsWith("ipv4:127.0.0.1:"));
      lines.push_back(
          absl::StrJoin({records[i].caller(), records[i].method(), records[i].resource(),
                         records[i].outcome(), records[i].reason()},
                        " "));
    }
    seen_ = records.size();
    Restart();
    return lines;
  }

  size_t seen_ = 0;
};

TEST_F(AuditTest, TellsWhoChangedWhat) {
  const v1::CreateTokenResponse submitter = Make(Token::SUBMITTER);
  const std::string who = submitter.token().name();
  const std::string admin = Lines()[0].substr(0, 19);
  EXPECT_THAT(admin, StartsWith("tokens/"));
  ASSERT_TRUE(CreateAs(submitter.secret(), "bible").ok());
  EXPECT_FALSE(CreateAs(submitter.secret(), "bible").ok());
  ASSERT_TRUE(GetAs(submitter.secret(), Name("bible")).ok());  // Reads are not written.
  ASSERT_TRUE(ListAs(submitter.secret()).ok());
  ASSERT_TRUE(Revoke(who).ok());
  const std::vector<std::string> lines = Lines();
  ASSERT_THAT(lines, SizeIs(3));
  EXPECT_EQ(lines[0], who + " JobService.CreateTrainingJob " + Name("bible") + " OK ");
  EXPECT_EQ(lines[1], who +
                          " JobService.CreateTrainingJob projects/default ALREADY_EXISTS "
                          "TRAINING_JOB_EXISTS");
  EXPECT_EQ(lines[2], admin + " TokenService.RevokeToken " + who + " OK ");
  for (const std::string& secret : {admin_, submitter.secret()}) {
    EXPECT_THAT(FileText(File()), Not(HasSubstr(secret.substr(secret.rfind('_') + 1))));
  }
}

TEST_F(AuditTest, TellsWhoWasRefused) {
  const v1::CreateTokenResponse viewer = Make(Token::VIEWER, "projects/default");
  const v1::CreateTokenResponse expired = Make(Token::VIEWER, "", 3600);
  const v1::CreateTokenResponse revoked = Make(Token::VIEWER);
  ASSERT_TRUE(Revoke(revoked.token().name()).ok());
  ahead_ = 3601;
  (void)Lines();
  const std::string job = Name("bible");
  EXPECT_FALSE(GetAs("", job).ok());
  EXPECT_FALSE(GetAs("x", job).ok());
  EXPECT_FALSE(GetAs(expired.secret(), job).ok());
  EXPECT_FALSE(GetAs(revoked.secret(), job).ok());
  EXPECT_FALSE(CreateAs(viewer.secret(), "bible").ok());
  EXPECT_FALSE(GetAs(viewer.secret(), "projects/other/trainingJobs/\n\"x").ok());
  grpc::ClientContext context;
  Show(context, viewer.secret());
  EXPECT_FALSE(FromGrpc(workers_->Session(&context)->Finish()).ok());
  const std::vector<std::string> lines = Lines();
  const std::string get = " JobService.GetTrainingJob ";
  const std::string who = viewer.token().name();
  ASSERT_THAT(lines, SizeIs(7));
  EXPECT_EQ(lines[0], get + job + " UNAUTHENTICATED TOKEN_MISSING");
  EXPECT_EQ(lines[1], get + job + " UNAUTHENTICATED TOKEN_INVALID");
  EXPECT_EQ(lines[2], expired.token().name() + get + job + " UNAUTHENTICATED TOKEN_EXPIRED");
  EXPECT_EQ(lines[3], revoked.token().name() + get + job + " UNAUTHENTICATED TOKEN_REVOKED");
  EXPECT_EQ(lines[4], who +
                          " JobService.CreateTrainingJob projects/default PERMISSION_DENIED "
                          "SCOPE_TOO_NARROW");
  EXPECT_EQ(lines[5], who + get +
                          "projects/other/trainingJobs/\\n\\\"x PERMISSION_DENIED "
                          "OTHER_PROJECT");
  EXPECT_EQ(lines[6], who + " WorkerService.Session  PERMISSION_DENIED SCOPE_TOO_NARROW");
}

// Refused by gRPC, before there is a request that could be written down.
TEST_F(AuditTest, OversizedMessageIsRefused) {
  v1::CreateTrainingJobRequest request = CreateRequest("bible");
  request.mutable_training_job()->set_name(std::string(3 << 20, 'x'));
  v1::TrainingJob job;
  EXPECT_EQ(CallAs(admin_, &v1::JobService::Stub::CreateTrainingJob, jobs_, request, &job).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetAs(admin_, Name("bible")).code(), absl::StatusCode::kNotFound);
}

class AuditLogTest : public ::testing::Test {
 protected:
  AuditLogTest() {
    log_ = std::make_unique<AuditLog>(path_, [this] { return now_; });
  }

  void Write(const absl::Status& status) {
    store::AuditRecord record;
    record.set_method("a call");
    log_->Write(record, status);
  }

  const TemporaryDirectory temporary_;
  const std::string path_ = temporary_.path() + "/audit.jsonl";
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
  std::unique_ptr<AuditLog> log_;
};

TEST_F(AuditLogTest, FloodOfRefusalsIsCounted) {
  constexpr int kMax = AuditLog::kRefusalsASecond;
  for (int i = 0; i < kMax + 7; ++i) Write(absl::UnauthenticatedError("no"));
  Write(absl::OkStatus());
  now_ += absl::Seconds(1);
  Write(absl::PermissionDeniedError("no"));
  log_->Flush();
  const std::vector<store::AuditRecord> records = RecordsIn(path_);
  ASSERT_THAT(records, SizeIs(kMax + 2));
  int64_t omitted = 0;
  for (const auto& record : records) omitted += record.omitted();
  EXPECT_EQ(omitted, 7);
  EXPECT_EQ(records[kMax].outcome(), "OK");
  EXPECT_EQ(records[kMax + 1].outcome(), "PERMISSION_DENIED");
}

TEST_F(AuditLogTest, GoesOnWhenItCanBeWrittenAgain) {
  ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
  Write(absl::OkStatus());
  Write(absl::OkStatus());
  log_->Flush();
  ASSERT_EQ(rmdir(path_.c_str()), 0);
  Write(absl::OkStatus());
  log_->Flush();
  const std::vector<store::AuditRecord> records = RecordsIn(path_);
  ASSERT_THAT(records, SizeIs(1));
  EXPECT_EQ(records[0].omitted(), 2);
}

TEST_F(AuditLogTest, OldPartsAreKeptForAWhile) {
  log_ = std::make_unique<AuditLog>(
      path_, [this] { return now_; }, /*file_bytes_max=*/150);
  for (int i = 0; i < 30; ++i) Write(absl::OkStatus());
  log_->Flush();
  const size_t lines = RecordsIn(path_).size();
  EXPECT_GE(lines, 1);
  for (int part = 1; part <= 9; ++part) {
    const std::string older = absl::StrCat(path_, ".", part);
    EXPECT_LE(FileText(older).size(), 150);
    EXPECT_THAT(RecordsIn(older), SizeIs(2)) << part;
  }
  EXPECT_NE(access((path_ + ".10").c_str(), F_OK), 0);
  struct stat status = {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600);
}

TEST_F(AuditLogTest, NextLifeAppends) {
  Write(absl::OkStatus());
  log_ = nullptr;
  log_ = std::make_unique<AuditLog>(path_, [this] { return now_; });
  Write(absl::OkStatus());
  log_ = nullptr;
  EXPECT_THAT(RecordsIn(path_), SizeIs(2));
}

}  // namespace
}  // namespace ringmaster::coordinator
