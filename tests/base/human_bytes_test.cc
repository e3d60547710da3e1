#include "base/human_bytes.h"

#include <gtest/gtest.h>

namespace ringmaster {
namespace {

TEST(HumanBytesTest, TakesTheLargestUnitThatFits) {
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(12), "12 B");
  EXPECT_EQ(HumanBytes(-2048), "-2.0 KiB");
  EXPECT_EQ(HumanBytes(0x1p60), "1024.0 PiB");
}

}  // namespace
}  // namespace ringmaster
