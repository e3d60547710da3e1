#include "coordinator/page/words.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

TEST(WordsTest, NumbersHaveGroupsOfThreeDigits) {
  EXPECT_EQ(Count(0), "0");
  EXPECT_EQ(Count(999), "999");
  EXPECT_EQ(Count(1000), "1,000");
  EXPECT_EQ(Count(-999), "-999");
  EXPECT_EQ(Count(-123456), "-123,456");
  EXPECT_EQ(Count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(WordsTest, RatesAndSpansHaveFewDigits) {
  EXPECT_EQ(Rate(0), "0");
  EXPECT_EQ(Rate(9999.4), "9,999");
  EXPECT_EQ(Rate(12345), "12.3k");
  EXPECT_EQ(Rate(4.5678e6), "4.57M");
  EXPECT_EQ(Rate(std::numeric_limits<double>::quiet_NaN()), "");
  EXPECT_EQ(Rate(1e300), "");
  EXPECT_EQ(Span(-absl::Seconds(3)), "0 s");
  EXPECT_EQ(Span(absl::Seconds(89)), "89 s");
  EXPECT_EQ(Span(absl::Minutes(12)), "12 min");
  EXPECT_EQ(Span(absl::Minutes(204)), "3.4 h");
  EXPECT_EQ(Span(absl::Hours(60)), "2.5 d");
}

TEST(WordsTest, TimesTellTheDateToo) {
  const absl::Time time = absl::FromUnixSeconds(1'770'000'000);
  EXPECT_EQ(Utc(time), "2026-02-02 02:40:00 UTC");
  EXPECT_EQ(Ago(time, time + absl::Seconds(5)).markup(),
            "<time title=\"2026-02-02 02:40:00 UTC\">5 s ago</time>");
}

TEST(WordsTest, JobsAreLinked) {
  EXPECT_EQ(JobLink("projects/vision/trainingJobs/bible").markup(),
            "<a href=\"/jobs/vision/bible\">vision/bible</a>");
}

TEST(WordsTest, EveryStateHasAWord) {
  v1::TrainingJob job;
  job.mutable_status()->set_state(v1::TrainingJobStatus::RECOVERING);
  EXPECT_EQ(StateOf(job).markup(), "<span class=\"bad\">recovering</span>");
  v1::Worker worker;
  worker.set_state(v1::Worker::IDLE);
  EXPECT_EQ(StateOf(worker).markup(), "<span class=\"dim\">idle</span>");
}

}  // namespace
}  // namespace ringmaster::coordinator
