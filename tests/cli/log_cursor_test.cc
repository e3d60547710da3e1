#include "cli/log_cursor.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Lines = std::vector<std::pair<int, std::string>>;

// The texts of what is new in a stream of these lines, each a rank, and "{second} {text}".
std::vector<std::string> New(LogCursor& cursor, const Lines& lines) {
  std::vector<std::string> admitted;
  for (const auto& [rank, text] : lines) {
    v1::LogLine line;
    line.set_rank(rank);
    line.set_text(absl::StrCat("2026-01-31T12:00:0", text));
    if (cursor.Admit(line)) admitted.push_back(text);
  }
  return admitted;
}

TEST(LogCursorTest, ASecondStreamGoesOnWhereTheFirstBroke) {
  const Lines all = {{0, "1 a"}, {1, "1 b"}, {0, "2 c"}, {0, "2 c"}, {0, "2 d"},
                     {1, "3 e"}, {0, "4 f"}, {2, "5 g"}, {1, "5 h"}};
  for (size_t first = 0; first <= all.size(); ++first) {
    for (size_t second = 0; second <= all.size(); ++second) {
      SCOPED_TRACE(absl::StrCat("broken behind ", first, " and ", second, " lines"));
      LogCursor cursor;
      std::vector<std::string> seen;
      for (const size_t count : {first, second, all.size()}) {
        EXPECT_EQ(cursor.Rewind(), !seen.empty());
        for (std::string& text : New(cursor, Lines(all.begin(), all.begin() + count))) {
          seen.push_back(std::move(text));
        }
      }
      EXPECT_THAT(seen, ElementsAre("1 a", "1 b", "2 c", "2 c", "2 d", "3 e", "4 f", "5 g", "5 h"));
    }
  }
}

// The first stream began at the end (--tail): what was before is not wanted later either.
TEST(LogCursorTest, WhatIsOlderThanTheFirstLineStaysOut) {
  LogCursor cursor;
  EXPECT_THAT(New(cursor, {{0, "3 c"}}), ElementsAre("3 c"));
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "1 a"}, {0, "2 b"}, {0, "3 c"}, {0, "4 d"}}), ElementsAre("4 d"));
}

TEST(LogCursorTest, LinesThatAreGoneAreNotWaitedFor) {
  LogCursor cursor;
  New(cursor, {{0, "1 a"}, {0, "2 b"}});
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "3 c"}, {0, "4 d"}}), ElementsAre("3 c", "4 d"));
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "4 d"}}), IsEmpty());
}

// What was read last may be rotated away while the stream is read once more.
TEST(LogCursorTest, WhatIsLaterThanAllThatWasReadIsNew) {
  LogCursor cursor;
  New(cursor, {{0, "1 a"}, {0, "2 b"}, {0, "3 c"}});
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "1 a"}, {0, "4 d"}, {0, "5 e"}}), ElementsAre("4 d", "5 e"));
}

TEST(LogCursorTest, AnEarlyLineOfALateClockIsNotNew) {
  LogCursor cursor;
  New(cursor, {{0, "5 a"}, {0, "3 b"}});
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "5 a"}, {0, "3 b"}, {0, "4 c"}}), ElementsAre("4 c"));
}

// The next worker of a rank may have a clock that is behind.
TEST(LogCursorTest, AClockThatGoesBackLosesNoNewLine) {
  LogCursor cursor;
  New(cursor, {{0, "1 a"}, {0, "5 b"}});
  cursor.Rewind();
  EXPECT_THAT(New(cursor, {{0, "1 a"}, {0, "5 b"}, {0, "3 c"}, {0, "5 d"}}),
              ElementsAre("3 c", "5 d"));
}

}  // namespace
}  // namespace ringmaster::cli
