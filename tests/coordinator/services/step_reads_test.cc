#include "coordinator/services/step_reads.h"

#include <atomic>
#include <future>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;

// Logs on a disk that hangs until it is let go.
class StepReadsTest : public ::testing::Test {
 protected:
  // A read ends with what is here.
  ~StepReadsTest() override { Go(); }

  void Go() {
    if (!gone_) release_.set_value();
    gone_ = true;
  }
  std::vector<v1::StepRecord> Read(const std::string& uid) {
    ++begun_;
    if (uid.starts_with("slow")) go_.wait();
    return std::vector<v1::StepRecord>(3);
  }

  std::atomic<int> begun_ = 0;
  std::promise<void> release_;
  std::shared_future<void> go_ = release_.get_future().share();
  bool gone_ = false;
};

TEST_F(StepReadsTest, ADiskThatHangsIsWaitedForByOneThreadAndAFewPages) {
  StepReads reads(absl::Milliseconds(20),
                  [this](const std::string&, const std::string& uid) { return Read(uid); });
  // A tab that refreshes itself.
  for (int i = 0; i < 20; ++i) {
    const auto steps = reads.Of("/a", "slow");
    EXPECT_EQ(steps.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(steps.status().message()), HasSubstr("in time"));
  }
  EXPECT_EQ(begun_, 1);
  for (int i = 0; i < 7; ++i) {
    const auto steps = reads.Of("/a", absl::StrCat("slow-", i));
    EXPECT_THAT(std::string(steps.status().message()), HasSubstr("in time")) << i;
  }
  EXPECT_THAT(std::string(reads.Of("/a", "slow-7").status().message()), HasSubstr("too many"));
  EXPECT_EQ(begun_, 1);
  Go();
}

TEST_F(StepReadsTest, GoesOnWhenTheDiskDoes) {
  StepReads reads(absl::Seconds(30),
                  [this](const std::string&, const std::string& uid) { return Read(uid); });
  std::vector<std::future<absl::StatusOr<std::vector<v1::StepRecord>>>> pages;
  for (int i = 0; i < 20; ++i) {
    pages.push_back(std::async(std::launch::async,
                               [&reads, i] { return reads.Of("/a", i < 10 ? "slow" : "fast"); }));
  }
  Go();
  for (auto& page : pages) {
    const auto steps = page.get();
    ASSERT_TRUE(steps.ok()) << steps.status();
    EXPECT_EQ(steps->size(), 3u);
  }
  EXPECT_EQ(reads.Of("/a", "fast")->size(), 3u);
}

}  // namespace
}  // namespace ringmaster::coordinator
