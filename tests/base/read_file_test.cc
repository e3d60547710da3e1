#include "base/read_file.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

TEST(ReadFileTest, GivesEveryByte) {
  const TemporaryDirectory temporary;
  const std::string path = temporary.path() + "/file";
  for (const size_t size : {0, 1, 16 << 10, (16 << 10) + 1, 100'000}) {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) {
      content[i] = static_cast<char>(i * i % 251);
    }
    std::ofstream(path, std::ios::binary) << content;
    const auto text = ReadFile(path);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, content);
  }
}

TEST(ReadFileTest, AnErrorIsAStatusThatNamesTheFile) {
  const TemporaryDirectory temporary;
  const std::string missing = temporary.path() + "/none";
  EXPECT_EQ(ReadFile(missing).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ReadFile(missing).status().message(), HasSubstr(missing));
  // What opens, but cannot be read: EISDIR and EIO.
  for (const std::string& path : {temporary.path(), std::string("/proc/self/mem")}) {
    const auto text = ReadFile(path);
    ASSERT_FALSE(text.ok()) << path;
    EXPECT_NE(text.status().code(), absl::StatusCode::kNotFound) << text.status();
    EXPECT_THAT(text.status().message(), HasSubstr(path + ": cannot be read"));
  }
}

}  // namespace
}  // namespace ringmaster
