#include "worker/driver/worker_process.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "gtest/gtest.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

using ::testing::ExitedWithCode;

// Each worker is a child process: what it finds out about its machine stays for its life.
class WorkerStartTest : public ::testing::Test {
 protected:
  WorkerStartTest() { setenv("RINGMASTER_CUDA_PLUGIN", FAKE_CUDA_PLUGIN, /*overwrite=*/1); }

  // Tells the driver what to say to workers from now on.
  static void SetDriver(int devices, absl::StatusCode error) {
    setenv("FAKE_CUDA_DEVICES", absl::StrCat(devices).c_str(), 1);
    setenv("FAKE_CUDA_ERROR", absl::StrCat(static_cast<int>(error)).c_str(), 1);
  }
  static WorkerOptions On(const std::string& device) {
    WorkerOptions options;
    options.hardware.device = device;
    return options;
  }
  // RunWorker returns only when it cannot start.
  static void Start(const WorkerOptions& options) {
    EXPECT_TRUE(SetUpLogging("worker", {}).ok());
    _exit(RunWorker(options, std::string(32, 'a')));
  }
  static void ExitUnlessCpu(const std::string& device) {
    const auto choice = ChooseDevice({.device = device});
    _exit(choice.ok() && choice->device == "cpu" ? 0 : 1);
  }
};

TEST_F(WorkerStartTest, WhatANewStartCannotMendEndsTheSupervisorToo) {
  SetDriver(0, absl::StatusCode::kOk);
  EXPECT_EXIT(Start(On("gpu")), ExitedWithCode(kExitUsage), "device \"gpu\"");
  EXPECT_EXIT(Start(On("cuda")), ExitedWithCode(kExitUsage), "no device 0 here, or no driver");
  WorkerOptions options = On("cpu");
  options.coordinator.tls_ca = "/nowhere/ca.crt";
  EXPECT_EXIT(Start(options), ExitedWithCode(kExitUsage), "/nowhere/ca.crt");
}

TEST_F(WorkerStartTest, WhatMayPassAsksForAnotherStart) {
  for (const auto error : {absl::StatusCode::kInternal, absl::StatusCode::kResourceExhausted}) {
    SetDriver(1, error);
    EXPECT_EXIT(Start(On("cuda")), ExitedWithCode(kExitRestart), "the driver is resetting");
    // A GPU that fails once must not make a CPU worker for the rest of its life.
    EXPECT_EXIT(Start(On("auto")), ExitedWithCode(kExitRestart), "the driver is resetting");
  }
  const int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(taken, 1), 0);
  ASSERT_EQ(getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  WorkerOptions options = On("cpu");
  options.http_listen = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  EXPECT_EXIT(Start(options), ExitedWithCode(kExitRestart), "the port is taken");
  close(taken);
}

TEST_F(WorkerStartTest, AutoIsTheCpuWhereThereIsNoDeviceOrNoLibrary) {
  SetDriver(0, absl::StatusCode::kOk);
  EXPECT_EXIT(ExitUnlessCpu("auto"), ExitedWithCode(0), "");
  setenv("RINGMASTER_CUDA_PLUGIN", "/nowhere/libringmaster_cuda.so", 1);
  EXPECT_EXIT(ExitUnlessCpu("auto"), ExitedWithCode(0), "");
}

TEST_F(WorkerStartTest, ADeviceThatIsTooOldIsNamed) {
  SetDriver(1, absl::StatusCode::kOk);
  setenv("FAKE_CUDA_MAJOR", "7", 1);
  EXPECT_EXIT(Start(On("cuda")), ExitedWithCode(kExitUsage),
              "a card. has compute capability 7.5, training wants 8.0 or higher");
  EXPECT_EXIT(ExitUnlessCpu("auto"), ExitedWithCode(0), "");
  setenv("FAKE_CUDA_MAJOR", "8", 1);
  EXPECT_EXIT(ExitUnlessCpu("auto"), ExitedWithCode(1), "");
}

std::string Vendor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "vendor_id")) {
      return line.substr(line.find(": ") + 2);
    }
  }
  return "";
}

// Ranks of a ring must agree in all that the order of their sums hangs on.
TEST_F(WorkerStartTest, TheCpusCapabilityNamesVendorAndMklsCodePath) {
  const std::string vendor = Vendor();
  EXPECT_EXIT(
      {
        setenv("MKL_CBWR", "COMPATIBLE", 1);
        const auto choice = ChooseDevice({.device = "cpu"});
        std::fputs(choice.ok() ? choice->hardware.cpu_capability().c_str() : "", stderr);
        _exit(0);
      },
      ExitedWithCode(0), absl::StrCat(vendor.empty() ? "" : " ", vendor, " MKL_CBWR=COMPATIBLE$"));
}

}  // namespace
}  // namespace ringmaster::worker
