#include "base/logging.h"

#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

TEST(LoggingTest, RefusesAnUnknownLevelAndNamesTheKnownOnes) {
  const absl::Status status = SetUpLogging("test", {.level = "loud"});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("\"loud\" is not one of"));
}

TEST(LoggingTest, JsonLinesStayJsonWhateverTheMessageHolds) {
  const std::string path = testing::TempDir() + "/logging_test.log";
  std::remove(path.c_str());
  ASSERT_TRUE(SetUpLogging("test", {.json = true, .file = path}).ok());
  SPDLOG_INFO("a \"quote\", a \\ and a\nnew line");
  spdlog::shutdown();
  std::ifstream file(path);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const auto parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed["message"], "a \"quote\", a \\ and a\nnew line");
  EXPECT_EQ(parsed["level"], "info");
}

}  // namespace
}  // namespace ringmaster
