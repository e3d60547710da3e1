#include "cli/retry_stream.h"

#include <algorithm>
#include <functional>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

class RetryStreamTest : public testing::Test {
 protected:
  // What takes `duration` and then finds no coordinator.
  absl::Status Gone(absl::Duration duration = absl::ZeroDuration()) {
    now_ += duration;
    ++attempts_;
    return absl::UnavailableError("gone");
  }

  absl::Time now_ = absl::UnixEpoch();
  int attempts_ = 0;
  std::ostringstream err_;
  const RetryClock clock_{.now = [this] { return now_; },
                          .pause = [this](absl::Duration time) { now_ += time; }};
  const std::function<absl::Status()> connected_ = [] { return absl::OkStatus(); };
};

TEST_F(RetryStreamTest, TheMinuteIsTimeHoweverLongAnAttemptLasts) {
  for (const absl::Duration attempt : {absl::ZeroDuration(), absl::Seconds(20)}) {
    const absl::Time start = now_;
    const auto status =
        RetryStream([&] { return Gone(attempt); },
                    [](bool&) { return absl::InternalError("not connected"); }, err_, clock_);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_GE(now_ - start, absl::Minutes(1)) << attempt;
    EXPECT_LE(now_ - start, absl::Minutes(1) + attempt + absl::Seconds(1)) << attempt;
  }
}

TEST_F(RetryStreamTest, ACoordinatorThatRefusesIsGoneToo) {
  EXPECT_TRUE(absl::IsUnavailable(RetryStream(
      connected_, [&](bool&) { return Gone(); }, err_, clock_)));
  EXPECT_LE(now_ - absl::UnixEpoch(), absl::Seconds(62));
}

TEST_F(RetryStreamTest, AMinuteBeginsWhenAStreamEnds) {
  for (const absl::Duration lasts : {absl::ZeroDuration(), absl::Hours(1)}) {
    const absl::Time start = now_;
    attempts_ = 0;
    const auto connect = [&] { return attempts_ < 3 ? absl::OkStatus() : Gone(absl::Seconds(5)); };
    const auto read = [&](bool& answered) {
      answered = true;
      return Gone(lasts);
    };
    RetryStream(connect, read, err_, clock_).IgnoreError();
    EXPECT_GE(now_ - start, 3 * lasts + absl::Minutes(1)) << lasts;
    EXPECT_LE(now_ - start, 3 * lasts + absl::Seconds(70)) << lasts;
  }
}

// A proxy lets a client connect, and holds each stream for a while before it ends it.
TEST_F(RetryStreamTest, AStreamThatWasHeldIsNoCoordinator) {
  const auto read = [&](bool&) {
    return attempts_ < 100 ? Gone(absl::Seconds(5)) : absl::InternalError("for ever");
  };
  const auto status = RetryStream(connected_, read, err_, clock_);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LE(now_ - absl::UnixEpoch(), absl::Seconds(67));
  EXPECT_EQ(err_.str(), "gone; trying again\n");
}

TEST_F(RetryStreamTest, EachGapThatLastsIsToldOnce) {
  RetryStream(
      connected_,
      [&](bool& answered) {
        answered = attempts_ == 0 || attempts_ == 2 || attempts_ == 30;
        return Gone();
      },
      err_, clock_)
      .IgnoreError();
  const std::string told = err_.str();
  EXPECT_EQ(std::count(told.begin(), told.end(), '\n'), 2) << told;
  EXPECT_EQ(told.substr(0, told.find('\n')), "gone; trying again");
}

TEST_F(RetryStreamTest, OnlyAnAbsentCoordinatorIsAskedAgain) {
  for (const auto& end : {absl::OkStatus(), absl::NotFoundError("deleted")}) {
    attempts_ = 0;
    const auto status = RetryStream(
        connected_,
        [&](bool&) {
          Gone().IgnoreError();
          return attempts_ < 3 ? absl::AbortedError("overrun") : end;
        },
        err_, clock_);
    EXPECT_EQ(status, end);
    EXPECT_EQ(attempts_, 3);
  }
}

}  // namespace
}  // namespace ringmaster::cli
