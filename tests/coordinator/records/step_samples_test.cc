#include "coordinator/records/step_samples.h"

#include <unistd.h>

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

class StepSamplesTest : public ::testing::Test {
 protected:
  StepSamplesTest() : path_(temporary_.path() + "/steps.jsonl") {}

  void Append(const std::string& text) {
    std::ofstream(path_, std::ios::app | std::ios::binary) << text;
  }
  // As long as those of a real job.
  static std::string Line(int64_t step, int64_t generation, const std::string& uid = "uid") {
    return absl::StrCat("{\"step\":", step, ",\"generation\":", generation, ",\"loss\":", step,
                        ".5,\"x\":\"", std::string(150, 'x'), "\",\"training_job_uid\":\"", uid,
                        "\"}\n");
  }
  // "step/generation" of each.
  std::vector<std::string> Sampled() const {
    std::vector<std::string> steps;
    for (const v1::StepRecord& record : SampleSteps(path_, "uid")) {
      EXPECT_EQ(record.loss(), static_cast<double>(record.step()) + 0.5);
      steps.push_back(absl::StrCat(record.step(), "/", record.generation()));
    }
    return steps;
  }

  const TemporaryDirectory temporary_;
  const std::string path_;
};

TEST_F(StepSamplesTest, AllOfAShortFile) {
  EXPECT_THAT(Sampled(), IsEmpty());
  Append(Line(1, 1) + Line(7, 1, "other") + "no record\n" + Line(2, 1) + "{\"step\":3");
  EXPECT_THAT(Sampled(), ElementsAre("1/1", "2/1"));
}

TEST_F(StepSamplesTest, WhatWasDoneAgainIsThereAsDoneLast) {
  Append(Line(1, 1) + Line(2, 1) + Line(3, 1) + Line(2, 2) + Line(4, 1) + Line(3, 2) + Line(3, 2));
  EXPECT_THAT(Sampled(), ElementsAre("1/1", "2/2", "3/2"));
}

TEST_F(StepSamplesTest, LongFileIsSampledEvenly) {
  constexpr int64_t kSteps = 200'000;
  std::string text;
  for (int64_t step = 1; step <= kSteps; ++step) text += Line(step, 1);
  Append(text);
  const std::vector<v1::StepRecord> records = SampleSteps(path_, "uid");
  // No more than what the bytes that may be read can hold.
  EXPECT_LE(records.size(), kStepSampleBytes / Line(1, 1).size());
  EXPECT_GE(records.size(), kStepSampleBytes / Line(1, 1).size() / 2);
  EXPECT_EQ(records.front().step(), 1);
  EXPECT_EQ(records.back().step(), kSteps);
  for (size_t i = 1; i < records.size(); ++i) {
    const int64_t distance = records[i].step() - records[i - 1].step();
    EXPECT_GT(distance, 0);
    EXPECT_LT(distance, kSteps / 200);
  }
}

// It has no blocks on the disk, and looks longer than any disk.
TEST_F(StepSamplesTest, AsLongAsAFileCanBe) {
  Append(Line(1, 1));
  ASSERT_EQ(truncate(path_.c_str(), int64_t{1} << 43), 0);
  EXPECT_THAT(Sampled(), ElementsAre("1/1"));
}

// A job writes what it likes.
TEST_F(StepSamplesTest, NoMoreLinesThanAPageHasTimeFor) {
  std::string text;
  for (int step = 1; step <= 9000; ++step) {
    text += absl::StrCat("{\"generation\":1,\"x\":\"", std::string(60, 'x'), "\",\"step\":", step,
                         "}\n");
  }
  ASSERT_LT(text.size(), kStepSampleBytes);
  Append("{ }\n{\"step\":9}\n" + text);
  const std::vector<v1::StepRecord> records = SampleSteps(path_, "uid");
  ASSERT_EQ(records.size(), 8192u);
  EXPECT_EQ(records.front().step(), 1);
}

}  // namespace
}  // namespace ringmaster::coordinator
