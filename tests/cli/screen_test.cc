#include "cli/screen.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

TEST(FitScreenTest, CutsWhatIsTooWideOrTooLong) {
  EXPECT_EQ(FitScreen("", 5, 3), "");
  EXPECT_EQ(FitScreen("12345\n123456\n", 5, 3), "12345\n12345\n");
  EXPECT_EQ(FitScreen("a\nb\nc\nd\n", 5, 3), "a\nb\nc");
  EXPECT_EQ(FitScreen("abc\ndef", 1, 1), "a");
}

}  // namespace
}  // namespace ringmaster::cli
