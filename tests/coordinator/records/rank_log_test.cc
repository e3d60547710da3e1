#include "coordinator/records/rank_log.h"

#include <filesystem>
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

class JobLogsTest : public ::testing::Test {
 protected:
  JobLogsTest() : logs_(temporary_.path() + "/logs/") {
    std::filesystem::create_directories(logs_);
  }

  void Append(const std::string& file, const std::string& text) {
    std::ofstream(logs_ + file, std::ios::app | std::ios::binary) << text;
  }
  void Rotate(const std::string& from, const std::string& to) {
    std::filesystem::rename(logs_ + from, logs_ + to);
  }
  static std::string Line(int second, const std::string& text) {
    return absl::StrCat("2026-01-31T12:00:", second / 10, second % 10, ".000Z I workers/w g1 ",
                        text, "\n");
  }
  // "rank:last word" of all lines there are.
  static std::vector<std::string> Drain(JobLogs& logs, size_t count = 3) {
    std::vector<std::string> result;
    for (;;) {
      const std::vector<v1::LogLine> lines = logs.Next(count, 1 << 20);
      if (lines.empty()) return result;
      for (const v1::LogLine& line : lines) {
        result.push_back(
            absl::StrCat(line.rank(), ":", line.text().substr(line.text().rfind(' ') + 1)));
      }
    }
  }

  const TemporaryDirectory temporary_;
  const std::string logs_;
};

TEST_F(JobLogsTest, MergesRanksByTime) {
  Append("rank-0.log", Line(1, "a") + Line(4, "d") + Line(5, "e"));
  Append("rank-1.log", Line(2, "b") + "of-b\n" + Line(3, "c"));
  JobLogs logs(temporary_.path(), {}, 0);
  EXPECT_THAT(Drain(logs), ElementsAre("0:a", "1:b", "1:of-b", "1:c", "0:d", "0:e"));
}

TEST_F(JobLogsTest, TellsRankAndWorker) {
  Append("rank-12.log", Line(1, "ring formed: rank 12"));
  JobLogs logs(temporary_.path(), {}, 0);
  const std::vector<v1::LogLine> lines = logs.Next(10, 1 << 20);
  ASSERT_EQ(lines.size(), 1);
  EXPECT_EQ(lines[0].rank(), 12);
  EXPECT_EQ(lines[0].worker(), "workers/w");
  EXPECT_EQ(lines[0].text(), "2026-01-31T12:00:01.000Z I workers/w g1 ring formed: rank 12");
}

TEST_F(JobLogsTest, ReadsRotatedPartsOldestFirst) {
  Append("rank-0.2.log", Line(1, "a"));
  Append("rank-0.1.log", Line(2, "b"));
  Append("rank-0.log", Line(3, "c"));
  JobLogs logs(temporary_.path(), {}, 0);
  EXPECT_THAT(Drain(logs), ElementsAre("0:a", "0:b", "0:c"));
}

TEST_F(JobLogsTest, FollowsOverARotation) {
  Append("rank-0.log", Line(1, "a"));
  JobLogs logs(temporary_.path(), {}, 0);
  EXPECT_THAT(Drain(logs), ElementsAre("0:a"));
  // Something is written before it is rotated, something after.
  Append("rank-0.log", Line(2, "b"));
  Rotate("rank-0.log", "rank-0.1.log");
  Append("rank-0.log", Line(3, "c"));
  EXPECT_THAT(Drain(logs), ElementsAre("0:b", "0:c"));
  Append("rank-0.log", Line(4, "d"));
  EXPECT_THAT(Drain(logs), ElementsAre("0:d"));
}

TEST_F(JobLogsTest, WaitsForTheEndOfALine) {
  Append("rank-0.log", Line(1, "a") + "2026-01-31T12:00:02.000Z I workers/w g1 ha");
  JobLogs logs(temporary_.path(), {}, 0);
  EXPECT_THAT(Drain(logs), ElementsAre("0:a"));
  Append("rank-0.log", "lf\n");
  EXPECT_THAT(Drain(logs), ElementsAre("0:half"));
}

TEST_F(JobLogsTest, TailCountsOverRotatedParts) {
  Append("rank-0.1.log", Line(1, "a") + Line(2, "b"));
  Append("rank-0.log", Line(3, "c") + Line(4, "d") + "incomplete");
  Append("rank-1.log", Line(5, "e"));
  for (const auto& [tail, want] : std::vector<std::pair<int, std::vector<std::string>>>{
           {1, {"0:d", "1:e"}},
           {2, {"0:c", "0:d", "1:e"}},
           {3, {"0:b", "0:c", "0:d", "1:e"}},
           {9, {"0:a", "0:b", "0:c", "0:d", "1:e"}}}) {
    JobLogs logs(temporary_.path(), {}, tail);
    EXPECT_EQ(Drain(logs), want) << "tail " << tail;
  }
}

TEST_F(JobLogsTest, OnlyTheRanksAskedForAlsoWhenTheyComeLater) {
  Append("rank-0.log", Line(1, "a"));
  Append("rank-x.log", "other\n");
  JobLogs logs(temporary_.path(), {1}, 0);
  EXPECT_THAT(Drain(logs), IsEmpty());
  Append("rank-1.log", Line(2, "b"));
  EXPECT_THAT(Drain(logs), ElementsAre("1:b"));
}

TEST_F(JobLogsTest, BytesThatAreNotUtf8AreReplaced) {
  Append("rank-0.log", "ok \xC3\xA9 bad \xC3( \xFF \xED\xA0\x80 end \xE2\x82\n");
  JobLogs logs(temporary_.path(), {}, 0);
  const std::vector<v1::LogLine> lines = logs.Next(10, 1 << 20);
  ASSERT_EQ(lines.size(), 1);
  EXPECT_EQ(lines[0].text(), "ok \xC3\xA9 bad ?( ? ??? end ??");
}

TEST_F(JobLogsTest, NoDirectoryIsNoLine) {
  JobLogs logs(temporary_.path() + "/nowhere", {}, 0);
  EXPECT_THAT(Drain(logs), IsEmpty());
}

TEST_F(JobLogsTest, LongLinesMakeShortAnswers) {
  for (int i = 0; i < 50; ++i) Append("rank-0.log", std::string(30'000, 'x') + "\n");
  JobLogs logs(temporary_.path(), {}, 0);
  size_t lines = 0;
  for (;;) {
    const std::vector<v1::LogLine> some = logs.Next(100, 100'000);
    if (some.empty()) break;
    EXPECT_LE(some.size(), 4);
    lines += some.size();
  }
  EXPECT_EQ(lines, 50);
}

}  // namespace
}  // namespace ringmaster::coordinator
