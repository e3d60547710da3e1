#include "coordinator/records/step_log.h"

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class StepLogTest : public ::testing::Test {
 protected:
  StepLogTest() : path_(temporary_.path() + "/steps.jsonl") {}

  void Append(const std::string& text) {
    std::ofstream(path_, std::ios::app | std::ios::binary) << text;
  }
  static std::string Line(int64_t step, int64_t generation, const std::string& uid = "uid") {
    return absl::StrCat("{\"step\":", step, ",\"generation\":", generation,
                        ",\"loss\":", generation, ".5,\"training_job_uid\":\"", uid, "\"}\n");
  }
  // "step/generation" of what Next() returns until there is nothing more.
  static std::vector<std::string> Drain(StepLog& log, size_t count = 100) {
    std::vector<std::string> steps;
    for (;;) {
      const std::vector<v1::StepRecord> records = log.Next(count);
      if (records.empty()) return steps;
      EXPECT_LE(records.size(), count);
      for (const v1::StepRecord& record : records) {
        EXPECT_EQ(record.loss(), static_cast<double>(record.generation()) + 0.5);
        steps.push_back(absl::StrCat(record.step(), "/", record.generation()));
      }
    }
  }

  const TemporaryDirectory temporary_;
  const std::string path_;
};

TEST_F(StepLogTest, MissingFileIsEmptyUntilItIsThere) {
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), IsEmpty());
  Append(Line(1, 1));
  EXPECT_THAT(Drain(log), ElementsAre("1/1"));
}

TEST_F(StepLogTest, RedoneStepAppearsOnceAsDoneLast) {
  Append(Line(1, 1) + Line(2, 1) + Line(3, 1) + Line(2, 2) + Line(3, 2) + Line(4, 2));
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1", "2/2", "3/2", "4/2"));
}

TEST_F(StepLogTest, StepsThatWillBeDoneAgainAreVoid) {
  // Generation 2 went back to step 2 and has not come to step 3 yet.
  Append(Line(1, 1) + Line(2, 1) + Line(3, 1) + Line(4, 1) + Line(2, 2));
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1", "2/2"));
  Append(Line(3, 2));
  EXPECT_THAT(Drain(log), ElementsAre("3/2"));
}

TEST_F(StepLogTest, LateLineOfAnOldGenerationCountsOnlyBelowTheNewOne) {
  // A writer that was stopped wakes up: its step 2 is valid still, its step 3 was done again.
  Append(Line(1, 1) + Line(3, 2) + Line(2, 1) + Line(3, 1) + Line(4, 2));
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1", "2/1", "3/2", "4/2"));
}

// The former owner of the directory had done more steps, in later generations.
TEST_F(StepLogTest, LinesOfAnotherJobSayNothing) {
  Append(Line(1, 7, "former") + Line(2, 7, "former") + Line(3, 9, "former"));
  Append(Line(2, 1) + "{\"step\":3,\"generation\":1,\"loss\":1.5}\n");
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("2/1", "3/1")) << "a line without a uid counts";
}

TEST_F(StepLogTest, StepSentAlreadyIsNotSentAgain) {
  Append(Line(1, 1) + Line(2, 1));
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1", "2/1"));
  Append(Line(2, 2) + Line(3, 2));
  EXPECT_THAT(Drain(log), ElementsAre("3/2"));
}

TEST_F(StepLogTest, IncompleteAndDamagedLinesAreSkipped) {
  Append("{\"step\":1,\"gene\n" + Line(1, 1) + "\n{\"step\":2,\"generation\":1,\"loss\":oops}\n" +
         Line(3, 1) + "{\"step\":4,\"generation\":1,");
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1", "3/1"));
  Append("\"loss\":1.5}\n");
  EXPECT_THAT(Drain(log), ElementsAre("4/1"));
}

TEST_F(StepLogTest, StartStepAndSmallPages) {
  std::string text;
  std::vector<std::string> want;
  for (int step = 1; step <= 1000; ++step) {
    text += Line(step, 1);
    if (step >= 900) want.push_back(absl::StrCat(step, "/1"));
  }
  Append(text);
  StepLog log(path_, "uid", 900);
  EXPECT_EQ(Drain(log, 7), want);
}

TEST_F(StepLogTest, ALineWithoutAnEndIsNoRecord) {
  // It would be one, if it were read whole.
  Append(Line(1, 1) + "{" + std::string(5 << 19, ' '));
  StepLog log(path_, "uid", 0);
  EXPECT_THAT(Drain(log), ElementsAre("1/1"));
  Append(Line(2, 1).substr(1) + Line(3, 1));
  EXPECT_THAT(Drain(log), ElementsAre("3/1"));
}

TEST_F(StepLogTest, ReadsEveryFieldAndLinesLongerThanABlock) {
  // 1.5 MiB without a line feed: longer than what is read at once.
  Append(std::string(3 << 19, ' ') + "\n" +
         "{\"step\":12,\"generation\":3,\"loss\":\"NaN\",\"grad_norm\":1.25,\"learning_rate\":0."
         "0006,\"tokens\":8192,"
         "\"seconds\":0.412,\"validation_loss\":2.5,\"time\":\"2026-01-31T12:00:00.123456Z\"}\n");
  StepLog log(path_, "uid", 0);
  const std::vector<v1::StepRecord> records = log.Next(10);
  ASSERT_EQ(records.size(), 1);
  EXPECT_NE(records[0].loss(), records[0].loss());
  EXPECT_EQ(records[0].tokens(), 8192);
  EXPECT_EQ(records[0].validation_loss(), 2.5);
  EXPECT_EQ(records[0].time().nanos(), 123456000);
}

}  // namespace
}  // namespace ringmaster::coordinator
