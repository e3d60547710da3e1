#include "cli/nearest_name.h"

#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

TEST(NearestNameTest, FindsTyposAndRefusesStrangers) {
  EXPECT_EQ(NearestName("lrr", {"lr", "beta1"}), "lr");
  EXPECT_EQ(NearestName("chekpoint", {"checkpoint", "recovery"}), "checkpoint");
  EXPECT_EQ(NearestName("zebra", {"checkpoint", "recovery"}), "");
  EXPECT_EQ(DidYouMean("chekpoint", {"checkpoint"}), " (did you mean \"checkpoint\"?)");
  EXPECT_EQ(DidYouMean("zebra", {"checkpoint"}), "");
}

}  // namespace
}  // namespace ringmaster::cli
