#include "worker/driver/worker_process.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "base/http/http_endpoint.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "base/version.h"
#include "grpcpp/client_context.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"
#include "worker/comm/cuda_plugin.h"
#include "worker/driver/session_loop.h"
#include "worker/session/exit_codes.h"

namespace ringmaster::worker {
namespace {

constexpr absl::Duration kReportDeadline = absl::Seconds(2);
constexpr absl::Duration kReportPause = absl::Milliseconds(50);
// What the job's log may take for its last lines: a file system that hangs never takes them.
constexpr absl::Duration kLogPatience = absl::Milliseconds(500);
// For a scrape and probes.
constexpr size_t kHttpThreads = 8;

// Everything that lives as long as the process. Never destroyed: the process ends while threads use
// it.
struct Process {
  EventQueue queue;
  WorkerMetrics metrics;
  std::unique_ptr<HttpEndpoint> http;
  std::shared_ptr<JobLog> job_log;
  std::unique_ptr<SessionLoop> loop;
};

// Ends the process at once, whatever its threads do.
[[noreturn]] void Leave(Process* process, int code) {
  process->job_log->Drain(kLogPatience);
  spdlog::default_logger()->flush();
  std::fflush(nullptr);
  _exit(code);
}

// From here on SIGTERM and SIGINT come to one thread, which asks the session to stop.
void ListenForSignals(EventQueue* queue) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  // A file-size limit is an error of write, like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  std::thread([ends, queue] {
    while (true) {
      int signal = 0;
      if (sigwait(&ends, &signal) == 0) {
        SPDLOG_INFO("signal {}: leaving", signal);
        queue->Push(StopRequested{});
      }
    }
  }).detach();
}

absl::Status WriteAddressFile(const std::string& path, const std::string& address) {
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary, std::ios::trunc);
  file << address << "\n";
  file.close();
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  return file && !error ? absl::OkStatus()
                        : absl::InvalidArgumentError(
                              absl::StrCat("--address-file ", path, " cannot be written"));
}

absl::Status StartHttp(const WorkerOptions& options, Process* process) {
  if (options.http_listen.empty()) {
    return absl::OkStatus();
  }
  const WorkerMetrics* metrics = &process->metrics;
  const auto answer = [metrics](const HttpRequest& request) -> HttpReply {
    if (request.path == "/metrics") {
      return {.content_type = kMetricsContentType, .body = metrics->Text()};
    }
    // Alive, not "training makes progress": that is the coordinator's to judge.
    if (request.path == "/healthz") return {.body = "ok\n"};
    return {.code = 404, .body = "no such page\n"};
  };
  ASSIGN_OR_RETURN(process->http, HttpEndpoint::Start(options.http_listen, answer, /*tls=*/nullptr,
                                                      {.threads = kHttpThreads}));
  return options.address_file.empty()
             ? absl::OkStatus()
             : WriteAddressFile(options.address_file, process->http->address());
}

std::optional<WorkerMetrics::DeviceMemory> ReadDeviceMemory(const CudaPlugin& plugin, int index,
                                                            int64_t limit_bytes) {
  const auto memory = plugin.Memory(index);
  if (!memory.ok()) {
    return std::nullopt;
  }
  return WorkerMetrics::DeviceMemory{
      .allocated_bytes = static_cast<int64_t>(memory->allocated_bytes),
      .reserved_bytes = static_cast<int64_t>(memory->reserved_bytes),
      .peak_allocated_bytes = static_cast<int64_t>(memory->peak_allocated_bytes),
      .peak_reserved_bytes = static_cast<int64_t>(memory->peak_reserved_bytes),
      .limit_bytes = limit_bytes};
}

absl::StatusOr<SessionLoopOptions> LoopOptions(const WorkerOptions& options,
                                               const std::string& incarnation, Process* process) {
  ASSIGN_OR_RETURN(DeviceChoice choice, ChooseDevice(options.hardware));
  SPDLOG_INFO("device {}: {} ({})", choice.device, choice.reason, choice.hardware.device_name());
  if (choice.device == "cuda") {
    ASSIGN_OR_RETURN(const CudaPlugin* const plugin, CudaPlugin::Open());
    process->metrics.SetDeviceMemory(
        [plugin, index = choice.index, limit = choice.hardware.memory_bytes()] {
          return ReadDeviceMemory(*plugin, index, limit);
        });
  }
  SessionLoopOptions loop;
  loop.device = choice.device;
  loop.identity = {
      .worker = WorkerName(options),
      .incarnation = incarnation,
      .supervisor = options.supervisor,
      .hardware = choice.hardware,
      .version = absl::StrCat(Version(), " (", Commit(), ")"),
      .metrics_address = process->http == nullptr ? std::string() : process->http->address()};
  RETURN_IF_ERROR(loop.identity.Validate());
  const char* const fault = std::getenv("RINGMASTER_FAULT");
  ASSIGN_OR_RETURN(loop.ring.fault, FaultInjection::Parse(fault == nullptr ? "" : fault));
  loop.ring.incarnation = incarnation;
  loop.ring.advertise_host = options.advertise_host;
  if (loop.ring.advertise_host.empty()) {
    loop.ring.advertise_host = RouteAddress(options.coordinator.target).value_or("");
  }
  loop.ring.coordinator = options.coordinator.target;
  loop.ring.device_index = choice.index;
  loop.ring.shared_directory = options.shared_directory;
  loop.ring.open_communicator = OpenCommunicator;
  loop.ring.die = [process](const std::string& reason) {
    SPDLOG_CRITICAL("{}; this process must be replaced", reason);
    Leave(process, kExitRestart);
  };
  loop.ring.metrics = &process->metrics;
  process->job_log = std::make_shared<JobLog>(loop.identity.worker);
  loop.ring.job_log = process->job_log.get();
  spdlog::default_logger()->sinks().push_back(process->job_log);
  return loop;
}

absl::Status Start(const WorkerOptions& options, const std::string& incarnation, Process* process) {
  ASSIGN_OR_RETURN(ChannelFactory channels, ChannelFactory::Create(options.coordinator));
  RETURN_IF_ERROR(StartHttp(options, process));
  ASSIGN_OR_RETURN(SessionLoopOptions loop, LoopOptions(options, incarnation, process));
  SPDLOG_INFO(
      "{} version {} ({}), incarnation {}, coordinator {}, peers reach it at {}",
      loop.identity.worker, Version(), Commit(), incarnation, channels.target(),
      loop.ring.advertise_host.empty() ? "an address yet to be found" : loop.ring.advertise_host);
  process->loop =
      std::make_unique<SessionLoop>(std::move(channels), &process->queue, std::move(loop));
  return absl::OkStatus();
}

}  // namespace

int RunWorker(const WorkerOptions& options, const std::string& incarnation) {
  auto* const process = new Process;
  ListenForSignals(&process->queue);
  if (absl::Status status = Start(options, incarnation, process); !status.ok()) {
    SPDLOG_ERROR("cannot start: {}", status.ToString());
    const bool for_good = absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status);
    return for_good ? kExitUsage : kExitRestart;
  }
  const SessionEnd end = process->loop->Run();
  SPDLOG_INFO("leaving with exit code {}: {}", end.code, end.reason);
  Leave(process, end.code);
}

void ReportExit(const WorkerOptions& options, const ChildExit& exit, absl::Duration patience) {
  const auto channels = ChannelFactory::Create(options.coordinator);
  if (!channels.ok()) {
    return;
  }
  v1::ReportFaultRequest request;
  request.set_worker(WorkerName(options));
  request.set_incarnation(exit.incarnation);
  if (exit.signal != 0) {
    request.set_signal(exit.signal);
  } else {
    request.set_exit_code(exit.exit_code);
  }
  while (true) {
    const absl::Duration age = SteadyNow() - exit.time;
    request.mutable_age()->set_seconds(absl::ToInt64Seconds(age));
    request.mutable_age()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(age % absl::Seconds(1))));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kReportDeadline));
    v1::ReportFaultResponse response;
    const absl::Status status = FromGrpc(v1::WorkerService::NewStub(channels->NewChannel())
                                             ->ReportFault(&context, request, &response));
    if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
      if (!status.ok()) {
        SPDLOG_WARN("the coordinator does not take the report of the worker's end: {}",
                    status.ToString());
      }
      return;
    }
    if (age > patience) {
      SPDLOG_WARN("nobody heard that the worker ended: {}", status.ToString());
      return;
    }
    absl::SleepFor(kReportPause);
  }
}

std::string WorkerName(const WorkerOptions& options) {
  if (!options.worker_id.empty()) {
    return absl::StrCat("workers/", options.worker_id);
  }
  std::string id = HostName();
  if (absl::string_view(options.hardware.device).substr(0, 4) == "cuda") {
    absl::StrAppend(&id, "-", absl::StrReplaceAll(options.hardware.device, {{":", ""}}));
  }
  return absl::StrCat("workers/", id);
}

}  // namespace ringmaster::worker
