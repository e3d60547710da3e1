#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "coordinator/core/times.h"
#include "coordinator/services/audit_log.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/coordinator/services/access_server.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using v1::Token;

std::vector<store::AuditRecord> RecordsOf(const std::string& text) {
  std::vector<store::AuditRecord> records;
  for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    records.emplace_back();
    EXPECT_TRUE(
        google::protobuf::util::JsonStringToMessage(std::string(line), &records.back()).ok())
        << line;
  }
  return records;
}

std::vector<store::AuditRecord> RecordsIn(const std::string& path) {
  return RecordsOf(FileText(path));
}

class AuditTest : public AccessTest {
 protected:
  std::string File(const std::string& kind = "") const {
    return absl::StrCat(temporary_.path(), "/data/audit", kind, ".jsonl");
  }
  // Of all files.
  std::vector<store::AuditRecord> Records() const {
    std::vector<store::AuditRecord> records;
    for (const std::string kind : {"", "-failed", "-unknown"}) {
      for (store::AuditRecord& record : RecordsIn(File(kind))) records.push_back(std::move(record));
    }
    std::stable_sort(records.begin(), records.end(), [](const auto& a, const auto& b) {
      return FromProto(a.time()) < FromProto(b.time());
    });
    return records;
  }

  // What was written since the last time, and by whom: "token method resource outcome reason". The
  // coordinator starts again.
  std::vector<std::string> Lines() {
    server_.reset();
    std::vector<std::string> lines;
    const std::vector<store::AuditRecord> records = Records();
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
    for (const std::string kind : {"", "-failed"}) {
      EXPECT_THAT(FileText(File(kind)), Not(HasSubstr(secret.substr(secret.rfind('_') + 1))));
    }
  }
}

TEST_F(AuditTest, TellsWhoEditedQueues) {
  const v1::CreateTokenResponse submitter = Make(Token::SUBMITTER);
  const std::string admin = Lines()[0].substr(0, 19);
  v1::CreateQueueRequest create;
  create.set_queue_id("vision");
  v1::UpdateQueueRequest update;
  update.mutable_queue()->set_name("queues/vision");
  v1::DeleteQueueRequest remove;
  remove.set_name("queues/vision");
  v1::Queue queue;
  google::protobuf::Empty nothing;
  using Stub = v1::QueueService::Stub;
  EXPECT_FALSE(CallAs(submitter.secret(), &Stub::CreateQueue, queues_, create, &queue).ok());
  EXPECT_TRUE(CallAs(admin_, &Stub::CreateQueue, queues_, create, &queue).ok());
  EXPECT_TRUE(CallAs(admin_, &Stub::UpdateQueue, queues_, update, &queue).ok());
  EXPECT_TRUE(CallAs(admin_, &Stub::DeleteQueue, queues_, remove, &nothing).ok());
  const std::string who = submitter.token().name();
  EXPECT_THAT(Lines(), ElementsAre(who + " QueueService.CreateQueue queues/vision "
                                         "PERMISSION_DENIED SCOPE_TOO_NARROW",
                                   admin + " QueueService.CreateQueue queues/vision OK ",
                                   admin + " QueueService.UpdateQueue queues/vision OK ",
                                   admin + " QueueService.DeleteQueue queues/vision OK "));
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
  EXPECT_THAT(RecordsIn(File()), SizeIs(4));  // The tokens.
  EXPECT_THAT(RecordsIn(File("-failed")), SizeIs(5));
  EXPECT_THAT(RecordsIn(File("-unknown")), SizeIs(2));
}

TEST_F(AuditTest, LinesOfWhoIsRefusedAreShort) {
  for (const char c : {'\x01', '<', '"', '\\', '\x7f', 'x'}) {
    EXPECT_FALSE(GetAs("", std::string(1000, c)).ok());
  }
  EXPECT_FALSE(GetAs("", std::string(1000, 'x') + "\xc3\xa4").ok());
  server_.reset();
  const std::string text = FileText(File("-unknown"));
  std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  ASSERT_THAT(lines, SizeIs(7));
  for (const std::string& line : lines) EXPECT_LT(line.size(), 256 * 2 + 256) << line;
  for (const store::AuditRecord& record : RecordsIn(File("-unknown"))) {
    EXPECT_LE(record.resource().size(), 256);
  }
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
  AuditLogTest() { Restart(); }

  void Restart(int64_t part_bytes_max = AuditLog::kPartBytesMax) {
    log_ = nullptr;
    log_ = std::make_unique<AuditLog>(
        temporary_.path() + "/audit", [this] { return now_; }, part_bytes_max);
  }

  void Write(const absl::Status& status, const std::string& caller = "") {
    store::AuditRecord record;
    record.set_method("a call");
    record.set_caller(caller);
    log_->Write(record, status);
  }
  static int64_t Omitted(const std::vector<store::AuditRecord>& records) {
    int64_t omitted = 0;
    for (const auto& record : records) omitted += record.omitted();
    return omitted;
  }

  const TemporaryDirectory temporary_;
  const std::string path_ = temporary_.path() + "/audit.jsonl";
  const std::string failed_ = temporary_.path() + "/audit-failed.jsonl";
  const std::string unknown_ = temporary_.path() + "/audit-unknown.jsonl";
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
  std::unique_ptr<AuditLog> log_;
};

TEST_F(AuditLogTest, FloodOfRefusalsIsCounted) {
  constexpr int kMax = AuditLog::kFailuresASecond;
  for (int i = 0; i < kMax + 7; ++i) Write(absl::UnauthenticatedError("no"));
  Write(absl::OkStatus());
  now_ += absl::Seconds(1);
  Write(absl::UnauthenticatedError("no"));
  Write(absl::PermissionDeniedError("no"));
  log_->Flush();
  const std::vector<store::AuditRecord> records = RecordsIn(unknown_);
  ASSERT_THAT(records, SizeIs(kMax + 1));
  EXPECT_EQ(Omitted(records), 7);
  ASSERT_THAT(RecordsIn(path_), SizeIs(1));
  EXPECT_EQ(RecordsIn(path_)[0].outcome(), "OK");
  EXPECT_EQ(Omitted(RecordsIn(path_)), 0);
  ASSERT_THAT(RecordsIn(failed_), SizeIs(1));
  EXPECT_EQ(RecordsIn(failed_)[0].outcome(), "PERMISSION_DENIED");
}

// Who has no token hides neither what was done nor that somebody's token was refused; and who has
// one does not hide what was done by calls that do nothing.
TEST_F(AuditLogTest, FloodPushesNothingElseOut) {
  Restart(/*part_bytes_max=*/150);
  Write(absl::OkStatus(), "tokens/1");
  const absl::Status revoked =
      WithErrorInfo(absl::UnauthenticatedError("no"), "TOKEN_REVOKED", {{"caller", "tokens/2"}});
  for (int i = 0; i < AuditLog::kFailuresASecond; ++i) Write(absl::UnauthenticatedError("no"));
  Write(revoked);
  for (int i = 0; i < 30; ++i) Write(absl::UnauthenticatedError("no"));
  log_->Flush();
  ASSERT_THAT(RecordsIn(failed_), SizeIs(1));
  EXPECT_EQ(RecordsIn(failed_)[0].caller(), "tokens/2");
  for (int i = 0; i < 30; ++i) Write(absl::NotFoundError("there is none"), "tokens/1");
  log_->Flush();
  ASSERT_THAT(RecordsIn(path_), SizeIs(1));
  EXPECT_EQ(RecordsIn(path_)[0].caller(), "tokens/1");
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

TEST_F(AuditLogTest, OutageIsToldOnce) {
  std::ostringstream told;
  const std::shared_ptr<spdlog::logger> before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(told)));
  ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
  for (int i = 0; i < 10; ++i) Write(absl::OkStatus());
  log_ = nullptr;
  spdlog::set_default_logger(before);
  const std::vector<std::string> lines = absl::StrSplit(told.str(), '\n', absl::SkipEmpty());
  EXPECT_THAT(lines, ElementsAre(HasSubstr("calls are missing in the audit log")));
}

// Otherwise lines would take what the store has set aside, once that is given back on a full disk.
TEST_F(AuditLogTest, RoomOfAPartIsSetAside) {
  constexpr int64_t kPart = 1 << 20;
  Restart(kPart);
  Write(absl::OkStatus());
  log_->Flush();
  struct stat status = {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_LT(status.st_size, 200);
  EXPECT_GE(status.st_blocks * 512, kPart);
}

// What others need of a disk that fills up is not tried for.
TEST_F(AuditLogTest, PartIsBegunOnlyWhereThereIsRoom) {
  Restart(/*part_bytes_max=*/int64_t{1} << 60);
  Write(absl::OkStatus());
  log_->Flush();
  struct stat status = {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 0);
  EXPECT_EQ(status.st_blocks, 0);
}

// A pipe that nobody reads takes some lines, and then hangs.
TEST_F(AuditLogTest, LittleWaitsForADiskThatHangs) {
  constexpr int kCalls = 30'000;
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  for (int i = 0; i < kCalls; ++i) Write(absl::OkStatus());
  std::string text;
  std::thread reader([&] { text = FileText(path_); });
  log_->Flush();
  Write(absl::OkStatus());
  log_ = nullptr;
  reader.join();
  const std::vector<store::AuditRecord> records = RecordsOf(text);
  EXPECT_EQ(static_cast<int64_t>(records.size()) + Omitted(records), kCalls + 1);
  EXPECT_GE(records.size(), AuditLog::kQueuedMax);
  EXPECT_LT(records.size(), AuditLog::kQueuedMax + 5'000);  // What the pipe held.
}

TEST_F(AuditLogTest, HalfALineSpoilsNoOther) {
  log_ = nullptr;
  std::ofstream(path_) << "{\"caller\": \"tok";
  Restart();
  Write(absl::OkStatus(), "tokens/1");
  log_ = nullptr;
  const std::vector<std::string> lines = absl::StrSplit(FileText(path_), '\n', absl::SkipEmpty());
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_EQ(lines[0], "{\"caller\": \"tok");
  EXPECT_THAT(lines[1], StartsWith("{"));
}

TEST_F(AuditLogTest, OldPartsAreKeptForAWhile) {
  Restart(/*part_bytes_max=*/150);
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
  Restart();
  Write(absl::OkStatus());
  log_ = nullptr;
  EXPECT_THAT(RecordsIn(path_), SizeIs(2));
}

}  // namespace
}  // namespace ringmaster::coordinator
