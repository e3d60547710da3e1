#include "cli/tensorboard_writer.h"

#include <cstring>
#include <sstream>

#include "gtest/gtest.h"

namespace ringmaster::cli {
namespace {

TEST(TensorboardWriterTest, Crc32cMatchesThePublishedCheckValue) {
  // RFC 3720, appendix B.4: 32 bytes of zeros; and the customary "123456789".
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
}

TEST(TensorboardWriterTest, RecordsAreFramedByTheirLength) {
  std::ostringstream out;
  TensorboardWriter writer(&out, 12.5);
  writer.AddScalars(13.5, 7, {{"train/loss", 2.25}});
  const std::string bytes = out.str();
  size_t offset = 0;
  int records = 0;
  while (offset < bytes.size()) {
    uint64_t length = 0;
    ASSERT_LE(offset + 12, bytes.size());
    std::memcpy(&length, bytes.data() + offset, 8);
    offset += 12 + length + 4;
    ++records;
  }
  EXPECT_EQ(offset, bytes.size());
  EXPECT_EQ(records, 2);
  EXPECT_NE(bytes.find("brain.Event:2"), std::string::npos);
  EXPECT_NE(bytes.find("train/loss"), std::string::npos);
}

}  // namespace
}  // namespace ringmaster::cli
