#include "base/daemon_main.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
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

// What it is for: the parser of the daemons' flags.
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

struct Daemon {
  std::optional<int> Read(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "ringmaster-test");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    AddDaemonFlags(app, flags, "engine/1.2");
    app.add_option("--listen", listen);
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const std::optional<int> code = ReadCommandLine(app, flags, static_cast<int>(argv.size()),
                                                    argv.data(), [] { return "| metric |\n"; });
    out = testing::internal::GetCapturedStdout();
    error = testing::internal::GetCapturedStderr();
    return code;
  }

  CLI::App app{"", "ringmaster-test"};
  DaemonFlags flags;
  std::string listen;
  std::string out;
  std::string error;
};

TEST(ReadCommandLineTest, TheLastOfSeveralCounts) {
  Daemon daemon;
  EXPECT_EQ(daemon.Read({"--listen=a", "--log-level=debug", "--log-format=json", "--listen=b",
                         "--log-level", "error"}),
            std::nullopt)
      << daemon.error;
  EXPECT_EQ(daemon.listen, "b");
  EXPECT_EQ(daemon.flags.logging.level, "error");
  EXPECT_TRUE(daemon.flags.logging.json);
}

TEST(ReadCommandLineTest, WhatOnlyPrintsEndsWell) {
  for (const auto& [flag, says] :
       {std::pair("--version", "ringmaster-test "), std::pair("--version", " engine/1.2\n"),
        std::pair("--help", "Usage: ringmaster-test "),
        std::pair("--print-metrics", "| metric |")}) {
    Daemon daemon;
    EXPECT_EQ(daemon.Read({flag}), 0);
    EXPECT_THAT(daemon.out, HasSubstr(says));
  }
}

TEST(ReadCommandLineTest, AWrongFlagIsToldAndEndsWith64) {
  for (const std::string flag :
       {"--log-level=loud", "--log-format=xml", "--log-file=/", "--what"}) {
    Daemon daemon;
    EXPECT_EQ(daemon.Read({flag}), 64) << flag;
    EXPECT_THAT(daemon.error, HasSubstr(flag.substr(flag.find('=') + 1)));
  }
}

}  // namespace
}  // namespace ringmaster
