#include "base/command_line.h"

#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<const char*> Split(std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return SplitEmptyValues(static_cast<int>(argv.size()), argv.data());
}

TEST(SplitEmptyValuesTest, SplitsThemOnly) {
  std::vector<std::string> arguments = {
      "program=", "--a=", "--b=1", "--c=d=", "-e=", "f=", "--g", "--=", "--", "--h="};
  const std::vector<const char*> split = Split(arguments);
  EXPECT_THAT(std::vector<std::string>(split.begin(), split.end()),
              ElementsAre("program=", "--a", "", "--b=1", "--c=d=", "-e=", "f=", "--g", "--=", "--",
                          "--h="));
}

// What it is for: the parser of flags.
TEST(SplitEmptyValuesTest, TheNextFlagIsNoValue) {
  for (const bool last : {false, true}) {
    CLI::App app;
    std::string listen = "default";
    std::string certificate;
    app.add_option("--http-listen", listen);
    app.add_option("--tls-cert", certificate);
    std::vector<std::string> arguments = {"program", "--tls-cert=c.pem", "--http-listen="};
    if (!last) std::swap(arguments[1], arguments[2]);
    const std::vector<const char*> split = Split(arguments);
    ASSERT_NO_THROW(app.parse(static_cast<int>(split.size()), split.data()));
    EXPECT_THAT(listen, IsEmpty());
    EXPECT_EQ(certificate, "c.pem");
  }
}

}  // namespace
}  // namespace ringmaster
