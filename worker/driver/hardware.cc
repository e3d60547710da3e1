#include "worker/driver/hardware.h"

#include <ATen/Version.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "worker/comm/communicator.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::worker {
namespace {

constexpr char kLoopback[] = "127.0.0.1";

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The value after "key<blanks>:" or "key " in a file of such lines.
std::string LineOf(const std::string& path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    if (absl::ConsumePrefix(&rest, key)) {
      const size_t colon = rest.find(':');
      rest.remove_prefix(colon == absl::string_view::npos ? 0 : colon + 1);
      return std::string(absl::StripAsciiWhitespace(rest));
    }
  }
  return std::string();
}

int AllowedCpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// What this process may use: the machine's memory or its control group's limit.
int64_t AllowedMemory() {
  int64_t kilobytes = 0;
  const std::string total = LineOf("/proc/meminfo", "MemTotal");
  int64_t bytes = std::numeric_limits<int64_t>::max();
  if (absl::SimpleAtoi(absl::StripSuffix(total, " kB"), &kilobytes)) {
    bytes = kilobytes << 10;
  }
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;
    if (absl::SimpleAtoi(FirstLine(path), &limit) && limit > 0) {
      bytes = std::min(bytes, limit);
    }
  }
  return bytes;
}

DeviceChoice CpuChoice(const HardwareOptions& options) {
  DeviceChoice choice{.device = "cpu"};
  choice.hardware.set_device(v1::CPU);
  choice.hardware.set_memory_bytes(AllowedMemory());
  choice.hardware.set_device_name(LineOf("/proc/cpuinfo", "model name"));
  choice.hardware.set_link_group(options.link_group);
  choice.hardware.add_transports(TransportVersion("ucx").value());
  return choice;
}

// Makes the device with that index the only one that CUDA shows to this process, so that it is
// every thread's current one. To be called before CUDA is used.
absl::Status ShowOnlyDevice(int index) {
  std::string device = absl::StrCat(index);
  if (const char* shown = std::getenv("CUDA_VISIBLE_DEVICES"); shown != nullptr) {
    const std::vector<std::string> devices = absl::StrSplit(shown, ',', absl::SkipEmpty());
    if (index >= static_cast<int>(devices.size())) {
      return absl::FailedPreconditionError(absl::StrCat("CUDA device ", index, " is not among the ",
                                                        devices.size(),
                                                        " of CUDA_VISIBLE_DEVICES=", shown));
    }
    device = devices[index];
  }
  setenv("CUDA_VISIBLE_DEVICES", device.c_str(), /*replace=*/1);
  return absl::OkStatus();
}

// Of bf16 products and of fused attention (Ampere).
constexpr int kLeastCudaMajor = 8;

absl::StatusOr<DeviceChoice> CudaChoice(const HardwareOptions& options, int index) {
  ASSIGN_OR_RETURN(const CudaPlugin* plugin, CudaPlugin::Open());
  RETURN_IF_ERROR(ShowOnlyDevice(index));
  ASSIGN_OR_RETURN(const int count, plugin->CountDevices());
  if (count == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA finds no device ", index, " here, or no driver"));
  }
  ASSIGN_OR_RETURN(const CudaDevice device, plugin->Describe(0));
  if (device.major < kLeastCudaMajor) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", index, " (", device.name, ") has compute capability ", device.major, ".",
        device.minor, ", training wants ", kLeastCudaMajor, ".0 or higher"));
  }
  DeviceChoice choice{.device = "cuda", .index = 0};
  choice.hardware.set_device(v1::CUDA);
  choice.hardware.set_memory_bytes(static_cast<int64_t>(device.total_bytes));
  choice.hardware.set_device_name(device.name);
  choice.hardware.set_link_group(options.link_group);
  ASSIGN_OR_RETURN(const std::string transport, TransportVersion("nccl"));
  choice.hardware.add_transports(transport);
  return choice;
}

absl::StatusOr<DeviceChoice> ForName(const HardwareOptions& options) {
  if (options.device == "cpu") {
    DeviceChoice choice = CpuChoice(options);
    choice.reason = "as asked for";
    return choice;
  }
  absl::string_view name = options.device;
  int index = 0;
  if (options.device == "auto") {
    auto choice = CudaChoice(options, index);
    if (choice.ok()) {
      choice->reason = "a CUDA device is there";
      return choice;
    }
    if (!absl::IsFailedPrecondition(choice.status())) {
      // It is there and fails: the CPU would be this worker's for the rest of its life.
      return choice;
    }
    DeviceChoice cpu = CpuChoice(options);
    cpu.reason = absl::StrCat("no CUDA device: ", choice.status().message());
    return cpu;
  }
  if (absl::ConsumePrefix(&name, "cuda") &&
      (name.empty() ||
       (absl::ConsumePrefix(&name, ":") && absl::SimpleAtoi(name, &index) && index >= 0))) {
    ASSIGN_OR_RETURN(DeviceChoice choice, CudaChoice(options, index));
    choice.reason = "as asked for";
    return choice;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", options.device, "\" is not auto, cpu, cuda or cuda:N"));
}

// What decides how floating-point numbers are summed: LibTorch's code path, and MKL's, which it
// chooses by vendor, too, unless MKL_CBWR says otherwise.
std::string CpuCapability() {
  std::string capability = at::get_cpu_capability();
  if (const std::string vendor = LineOf("/proc/cpuinfo", "vendor_id"); !vendor.empty()) {
    absl::StrAppend(&capability, " ", vendor);
  }
  if (const char* mkl = std::getenv("MKL_CBWR"); mkl != nullptr) {
    absl::StrAppend(&capability, " MKL_CBWR=", mkl);
  }
  return capability;
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

absl::StatusOr<DeviceChoice> ChooseDevice(const HardwareOptions& options) {
  ASSIGN_OR_RETURN(DeviceChoice choice, ForName(options));
  v1::Hardware& hardware = choice.hardware;
  hardware.set_host(options.host.empty() ? HostName() : options.host);
  if (hardware.link_group().empty()) {
    hardware.set_link_group(hardware.host());
  }
  hardware.set_zone(options.zone);
  hardware.set_cpu_capability(CpuCapability());
  hardware.set_threads(options.threads > 0 ? options.threads : AllowedCpus());
  return choice;
}

absl::StatusOr<std::string> RouteAddress(const std::string& coordinator) {
  const size_t colon = coordinator.rfind(':');
  if (colon == std::string::npos || absl::StartsWith(coordinator, "unix:")) {
    return kLoopback;
  }
  std::string host = coordinator.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), coordinator.substr(colon + 1).c_str(), &hints, &found);
  if (code != 0) {
    return absl::UnavailableError(
        absl::StrCat("the coordinator's name ", host, " is not resolved: ", gai_strerror(code)));
  }
  const absl::Cleanup freer = [found] { freeaddrinfo(found); };
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    const int probe = socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const absl::Cleanup closer = [probe] { close(probe); };
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    char text[NI_MAXHOST] = {};
    // No packet is sent: connect only asks for the route.
    if (probe >= 0 && connect(probe, one->ai_addr, one->ai_addrlen) == 0 &&
        getsockname(probe, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      return std::string(text);
    }
  }
  return absl::UnavailableError(absl::StrCat("no route leads to the coordinator's host ", host));
}

}  // namespace ringmaster::worker
