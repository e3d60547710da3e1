#include "base/daemon_main.h"

#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

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

TEST(ReadCommandLineTest, WhatCannotBePrintedEndsWith74) {
  for (const std::string flag : {"--version", "--help", "--print-metrics"}) {
    Daemon daemon;
    std::cout.setstate(std::ios::failbit);
    EXPECT_EQ(daemon.Read({flag}), 74) << flag;
    std::cout.clear();
    EXPECT_THAT(daemon.error, HasSubstr("standard output"));
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
