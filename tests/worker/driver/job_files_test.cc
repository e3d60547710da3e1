#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "spdlog/logger.h"
#include "tests/testing/temporary_directory.h"
#include "worker/comm/accused_ranks.h"
#include "worker/driver/job_log.h"
#include "worker/driver/printable_text.h"
#include "worker/driver/ring_roll.h"
#include "worker/driver/step_log.h"

namespace ringmaster::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JobFilesTest : public ::testing::Test {
 protected:
  std::string Read(const std::string& name) const {
    std::ifstream file(directory_ + "/" + name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  void Append(const std::string& name, const std::string& text) const {
    std::ofstream(directory_ + "/" + name, std::ios::app) << text;
  }

  const TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
};

v1::StepRecord Record(int64_t step, int64_t generation, double loss) {
  v1::StepRecord record;
  record.set_step(step);
  record.set_generation(generation);
  record.set_loss(loss);
  record.set_grad_norm(1.0 / 3);
  record.set_learning_rate(6e-4);
  record.set_tokens(int64_t{1} << 60);
  record.set_seconds(0.25);
  record.mutable_time()->set_seconds(1'700'000'000);
  record.mutable_time()->set_nanos(123'456'000);
  return record;
}

v1::StepRecord Parse(const std::string& line) {
  v1::StepRecord record;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(line, &record, options).ok()) << line;
  return record;
}

TEST(StepRecordLineTest, IsTheProtoMappingAndKeepsEveryBit) {
  v1::StepRecord record = Record(12, 3, 5.0 + 1e-15);
  EXPECT_EQ(Parse(StepRecordLine(record, "uid")).SerializeAsString(), record.SerializeAsString());
  record.set_validation_loss(std::nextafter(2.0, 3.0));
  const v1::StepRecord back = Parse(StepRecordLine(record, "uid"));
  EXPECT_EQ(back.SerializeAsString(), record.SerializeAsString());
  EXPECT_THAT(StepRecordLine(record, "uid"), HasSubstr("\"time\":\"2023-11-14T22:13:20.123456Z\""));
  EXPECT_THAT(StepRecordLine(record, "1f"), ::testing::EndsWith(",\"training_job_uid\":\"1f\"}"));
  for (const double odd :
       {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    record.set_loss(odd);
    EXPECT_EQ(Parse(StepRecordLine(record, "uid")).loss(), odd);
  }
  record.set_loss(std::nan(""));
  EXPECT_TRUE(std::isnan(Parse(StepRecordLine(record, "uid")).loss()));
}

TEST_F(JobFilesTest, StepLogAppendsAndEndsALineThatAKillCutOff) {
  {
    const auto log = StepLog::Open(directory_, "uid");
    ASSERT_TRUE(log.ok()) << log.status();
    EXPECT_TRUE((*log)->Append(Record(1, 1, 5)).ok());
    EXPECT_TRUE((*log)->Sync().ok());
  }
  Append("steps.jsonl", R"({"step":2,"gener)");
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok());
  EXPECT_TRUE((*log)->Append(Record(2, 2, 4)).ok());
  const std::vector<std::string> lines = absl::StrSplit(Read("steps.jsonl"), '\n');
  ASSERT_EQ(lines.size(), 4);
  EXPECT_EQ(lines[1], R"({"step":2,"gener)");
  EXPECT_EQ(Parse(lines[2]).loss(), 4);
  EXPECT_EQ(lines[3], "");
}

TEST_F(JobFilesTest, StepLogFindsTheRecordThatCounts) {
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok());
  EXPECT_FALSE((*log)->Find(1).has_value());
  for (int64_t step = 1; step <= 2000; ++step) {
    ASSERT_TRUE((*log)->Append(Record(step, 1, 1)).ok());
  }
  ASSERT_TRUE((*log)->Append(Record(1999, 2, 2)).ok());
  // A process that was stopped in generation 1 wakes up.
  ASSERT_TRUE((*log)->Append(Record(1999, 1, 3)).ok());
  ASSERT_TRUE((*log)->Find(1999).has_value());
  EXPECT_EQ((*log)->Find(1999)->loss(), 2);
  EXPECT_EQ((*log)->Find(2000)->loss(), 1);
  EXPECT_FALSE((*log)->Find(2001).has_value());
  EXPECT_FALSE((*log)->Find(1).has_value()) << "only the tail is read";
}

// A job that goes on from another one's checkpoint may have been given its directory.
TEST_F(JobFilesTest, StepLogFindsNoRecordOfAnotherJob) {
  const auto former = StepLog::Open(directory_, "former");
  ASSERT_TRUE(former.ok());
  ASSERT_TRUE((*former)->Append(Record(5, 1, 1)).ok());
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok());
  EXPECT_FALSE((*log)->Find(5).has_value());
  ASSERT_TRUE((*log)->Append(Record(5, 1, 2)).ok());
  ASSERT_TRUE((*former)->Append(Record(5, 9, 3)).ok());
  ASSERT_TRUE((*log)->Find(5).has_value());
  EXPECT_EQ((*log)->Find(5)->loss(), 2);
}

// The system does not tell how long a FIFO is, nor a file whose server is gone.
TEST_F(JobFilesTest, StepLogFindsNothingWhereTheFileDoesNotTellItsSize) {
  ASSERT_EQ(mkfifo((directory_ + "/steps.jsonl").c_str(), 0600), 0);
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_FALSE((*log)->Find(1).has_value());
}

// As a full disk, without one: the file may not grow.
TEST_F(JobFilesTest, StepLogKeepsWhatAFullDiskDoesNotTake) {
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok());
  ASSERT_TRUE((*log)->Append(Record(1, 1, 1)).ok());
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  // Room for a part of a line.
  const rlimit small{.rlim_cur = fs::file_size(directory_ + "/steps.jsonl") + 30,
                     .rlim_max = before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status second = (*log)->Append(Record(2, 1, 2));
  const absl::Status third = (*log)->Append(Record(3, 1, 3));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(second.ok());
  EXPECT_FALSE(third.ok());
  EXPECT_TRUE((*log)->Append(Record(4, 1, 4)).ok());
  std::vector<double> losses;
  for (const auto line : absl::StrSplit(Read("steps.jsonl"), '\n', absl::SkipEmpty())) {
    losses.push_back(Parse(std::string(line)).loss());
  }
  EXPECT_THAT(losses, ElementsAre(1, 2, 3, 4));
}

// Every rank opens the file at a start, and a manifest's writer does.
TEST_F(JobFilesTest, StepLogWritesALineAgainThatSomebodyElseHasEnded) {
  const auto log = StepLog::Open(directory_, "uid");
  ASSERT_TRUE(log.ok());
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 30, .rlim_max = before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status first = (*log)->Append(Record(1, 1, 1));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(first.ok());
  const std::string cut = Read("steps.jsonl");
  EXPECT_EQ(cut.size(), 30);
  EXPECT_TRUE(StepLog::Open(directory_, "uid").ok());
  EXPECT_TRUE((*log)->Append(Record(2, 1, 2)).ok());
  const std::vector<std::string> lines = absl::StrSplit(Read("steps.jsonl"), '\n');
  ASSERT_EQ(lines.size(), 4);
  EXPECT_EQ(lines[0], cut);
  EXPECT_EQ(Parse(lines[1]).loss(), 1);
  EXPECT_EQ(Parse(lines[2]).loss(), 2);
}

TEST_F(JobFilesTest, StepLogNamesAPathThatCannotBeWritten) {
  const auto log = StepLog::Open(directory_ + "/none", "uid");
  EXPECT_FALSE(log.ok());
  EXPECT_THAT(log.status().message(), HasSubstr(directory_ + "/none/steps.jsonl"));
}

TEST_F(JobFilesTest, JobLogWritesOnlyWhileARingIsOpenAndRotates) {
  const auto sink = std::make_shared<JobLog>("workers/a", 400);
  spdlog::logger logger("test", sink);
  logger.info("before");
  sink->Open(directory_, 1, 7);
  logger.warn("two\nlines");
  ASSERT_TRUE(sink->Drain(absl::Seconds(10)));
  const std::string first = Read("logs/rank-1.log");
  EXPECT_THAT(first,
              ::testing::MatchesRegex("....-..-..T..:..:......Z W workers/a g7 two lines\n"));
  for (int i = 0; i < 30; ++i) {
    logger.info("line {}", i);
  }
  ASSERT_TRUE(sink->Drain(absl::Seconds(10)));
  EXPECT_LE(fs::file_size(directory_ + "/logs/rank-1.log"), 400);
  EXPECT_LE(fs::file_size(directory_ + "/logs/rank-1.1.log"), 400);
  EXPECT_TRUE(fs::exists(directory_ + "/logs/rank-1.2.log"));
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_ + "/logs"), {}), 3);
  EXPECT_THAT(Read("logs/rank-1.log"), HasSubstr("line 29\n"));
  sink->Open(directory_, 0, 8);
  logger.info("as rank 0");
  sink->Close();
  logger.info("after");
  ASSERT_TRUE(sink->Drain(absl::Seconds(10)));
  EXPECT_THAT(Read("logs/rank-0.log"), ::testing::EndsWith("I workers/a g8 as rank 0\n"));
}

TEST_F(JobFilesTest, AJobLogWhoseDiskHangsKeepsWhatItCanAndTellsWhatItLost) {
  const std::string path = directory_ + "/logs/rank-0.log";
  fs::create_directories(directory_ + "/logs");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const auto sink = std::make_shared<JobLog>("workers/a", 1 << 20, /*waiting_bytes_max=*/400);
  spdlog::logger logger("test", sink);
  sink->Open(directory_, 0, 7);
  for (int i = 0; i < 100; ++i) {
    logger.info("line {}", i);
  }
  EXPECT_FALSE(sink->Drain(absl::ZeroDuration()));
  sink->Close();
  // The disk answers again.
  std::ifstream file(path);
  const std::vector<std::string> lines = absl::StrSplit(
      std::string(std::istreambuf_iterator<char>(file), {}), '\n', absl::SkipEmpty());
  const size_t kept = lines.size() - 1;
  EXPECT_GT(kept, 400 / 60);
  EXPECT_LE(kept, 400 / 40);
  for (size_t i = 0; i < kept; ++i) {
    EXPECT_THAT(lines[i], ::testing::EndsWith(absl::StrCat(" line ", i)));
  }
  EXPECT_THAT(lines.back(), ::testing::MatchesRegex(
                                absl::StrCat(".* W workers/a g7 lines missing .*: ", 100 - kept)));
  sink->Open(directory_, 1, 8);
  logger.info("again");
  ASSERT_TRUE(sink->Drain(absl::Seconds(10)));
  EXPECT_THAT(Read("logs/rank-1.log"), ::testing::EndsWith("I workers/a g8 again\n"));
}

v1::FormRing Form(const std::string& directory, int64_t generation, int rank) {
  v1::FormRing form;
  form.set_directory(directory);
  form.mutable_ring()->set_generation(generation);
  form.mutable_ring()->set_rank(rank);
  for (int r = 0; r < 2; ++r) {
    v1::RankAssignment* assignment = form.add_ranks();
    assignment->set_rank(r);
    assignment->set_worker(absl::StrCat("workers/w", r));
    assignment->set_incarnation(std::string(32, static_cast<char>('a' + r)));
  }
  return form;
}

TEST_F(JobFilesTest, TheRollProvesThatAllRanksSeeOneDirectory) {
  const std::string shared = directory_ + "/new/job";
  const std::string zero(32, 'a');
  const std::string one(32, 'b');
  ASSERT_TRUE(SignRingRoll(Form(shared, 3, 0), zero).ok());
  const absl::Status alone = CheckRingRoll(Form(shared, 3, 0), absl::ZeroDuration());
  EXPECT_EQ(alone.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(alone.message(), HasSubstr("rank 1 (workers/w1)"));
  EXPECT_THAT(AccusedRanks(alone), ElementsAre(1));
  // Another file system at the same path, or a process that is not the one of this generation.
  ASSERT_TRUE(SignRingRoll(Form(directory_ + "/other", 3, 1), one).ok());
  ASSERT_TRUE(SignRingRoll(Form(shared, 3, 1), std::string(32, 'c')).ok());
  ASSERT_TRUE(SignRingRoll(Form(shared, 2, 1), one).ok());
  EXPECT_FALSE(CheckRingRoll(Form(shared, 3, 0), absl::ZeroDuration()).ok());
  ASSERT_TRUE(SignRingRoll(Form(shared, 3, 1), one).ok());
  EXPECT_TRUE(CheckRingRoll(Form(shared, 3, 0), absl::ZeroDuration()).ok());
  EXPECT_TRUE(CheckRingRoll(Form(shared, 3, 1), absl::ZeroDuration()).ok());

  const absl::Status cancelled =
      CheckRingRoll(Form(shared, 4, 0), absl::InfiniteDuration(), [] { return true; });
  EXPECT_EQ(cancelled.code(), absl::StatusCode::kCancelled);

  LeaveRingRoll(Form(shared, 3, 1), one);
  LeaveRingRoll(Form(shared, 3, 0), zero);
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(shared + "/ring")) {
    left.push_back(entry.path().filename().string());
  }
  // Rank 0 swept the earlier generation; the stranger's own generation is not over.
  EXPECT_THAT(left, ElementsAre("g3-r1-" + std::string(32, 'c')));
}

TEST_F(JobFilesTest, AForbiddenDirectoryIsNamed) {
  Append("file", "x");
  const absl::Status status = SignRingRoll(Form(directory_ + "/file", 1, 0), "i");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr(directory_ + "/file"));
}

std::string Shown(const std::string& bytes) {
  PrintableText text;
  std::string shown;
  for (const char c : bytes) {
    shown += text.Feed(static_cast<unsigned char>(c));
  }
  return shown + text.Finish();
}

TEST(PrintableTextTest, PassesTextAndEscapesTheRest) {
  EXPECT_EQ(Shown("plain\ttext\n"), "plain\ttext\n");
  EXPECT_EQ(Shown("\x1b[31m\x7f"), "\\x1b[31m\\x7f");
  EXPECT_EQ(Shown(std::string(1, '\0')), "\\x00");
  const std::string good = "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82";
  EXPECT_EQ(Shown(good), good);
  // Cut, overlong, surrogate, beyond the last code point, a control of two bytes.
  EXPECT_EQ(Shown("\xe2\x82"), "\\xe2\\x82");
  EXPECT_EQ(Shown("\xe2\x82z"), "\\xe2\\x82z");
  EXPECT_EQ(Shown("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(Shown("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(Shown("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(Shown("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Shown("\xc2\x85"), "\\xc2\\x85");
  EXPECT_EQ(Shown("\x80"), "\\x80");
  EXPECT_EQ(Shown("\xc3\xc3\xa9"), "\\xc3\xc3\xa9");
}

}  // namespace
}  // namespace ringmaster::worker
