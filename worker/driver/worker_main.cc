// ringmaster-worker: trains on one device, as the coordinator says. docs/operations.md has the
// flags.
#include <torch/version.h>

#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/daemon_main.h"
#include "base/exit_code.h"
#include "grpcpp/grpcpp.h"
#include "worker/comm/communicator.h"
#include "worker/driver/convert_torchscale.h"
#include "worker/driver/generate.h"
#include "worker/driver/printable_text.h"
#include "worker/driver/worker_metrics.h"
#include "worker/driver/worker_process.h"
#include "worker/supervise/supervisor.h"

namespace ringmaster::worker {
namespace {

struct Flags {
  WorkerOptions worker;
  DaemonFlags daemon;
  bool supervise = false;
  GenerateOptions generate;
  ConvertTorchscaleOptions convert;
};

void AddPlaceFlags(CLI::App& app, WorkerOptions& worker) {
  app.add_option("--device", worker.hardware.device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str();
  app.add_option("--threads", worker.hardware.threads,
                 "CPU threads it may compute with; 0: as many as it has CPUs")
      ->check(CLI::Range(0, 4096));
  app.add_option("--host", worker.hardware.host,
                 "Name of the machine, for the order of the ring; empty: the host's name");
  app.add_option("--zone", worker.hardware.zone, "Name of the network it is in");
  app.add_option("--link-group", worker.hardware.link_group,
                 "Name of the NVLink or PCIe group it is in; empty: the machine");
  app.add_option(
      "--advertise-host", worker.advertise_host,
      "Numeric address at which other workers reach this one, over its interface only; empty: "
      "the one of the interface that leads to the coordinator");
}

void AddFlags(CLI::App& app, Flags& flags) {
  WorkerOptions& worker = flags.worker;
  app.add_option("--coordinator", worker.coordinator.target, "HOST:PORT or unix:PATH")
      ->envname("RINGMASTER_ADDRESS")
      ->capture_default_str();
  app.add_flag("--supervise", flags.supervise,
               "Run the worker in a child process, restart it at once, report how it ended");
  app.add_option("--worker-id", worker.worker_id,
                 "Name that outlives the process; two workers must not share one; empty: the "
                 "host's name");
  AddPlaceFlags(app, worker);
  app.add_option("--shared-dir", worker.shared_directory,
                 "Jobs' directories must lie below it; empty: anywhere");
  app.add_option("--http-listen", worker.http_listen,
                 "Address of /metrics and /healthz, HOST:PORT; port 0 takes a free one; empty: "
                 "none");
  app.add_option("--address-file", worker.address_file,
                 "File for the HTTP address, one line, written once it listens");
  app.add_option("--tls-ca", worker.coordinator.tls_ca,
                 "PEM file: connect by TLS, trusting this authority");
  app.add_option("--tls-cert", worker.coordinator.tls_cert, "PEM file: own certificate");
  app.add_option("--tls-key", worker.coordinator.tls_key, "PEM file: key of --tls-cert");
  app.add_option("--token-file", worker.coordinator.token_file,
                 "File with the token of scope worker that the coordinator asks for");
}

CLI::App* AddGenerate(CLI::App& app, GenerateOptions& generate) {
  CLI::App* command =
      app.add_subcommand("generate", "Print a sample from a checkpoint, computed on the CPU");
  command->add_option("--checkpoint", generate.checkpoint, "Its directory or manifest.json")
      ->required();
  command->add_option("--prompt", generate.prompt, "Text to continue; empty: a line feed");
  command->add_option("--tokens", generate.tokens, "Bytes to add")->capture_default_str();
  command->add_option("--temperature", generate.temperature, "0: the likeliest byte each time")
      ->capture_default_str();
  command->add_option("--seed", generate.seed, "Of the sampling")->capture_default_str();
  command
      ->add_option("--threads", generate.threads,
                   "CPU threads to compute with; 0: as many as it has CPUs")
      ->check(CLI::Range(0, 4096));
  return command;
}

CLI::App* AddConvertTorchscale(CLI::App& app, ConvertTorchscaleOptions& convert) {
  CLI::App* command = app.add_subcommand(
      "convert-torchscale",
      "Write a checkpoint of a torchscale LongNet decoder's weights, print how a job begins with "
      "it");
  command->add_option("FILE", convert.weights, "Its state dict, a safetensors file")->required();
  command
      ->add_option("--directory", convert.directory,
                   "Directory to make; the checkpoint is checkpoints/step-00000000 in it")
      ->required();
  command->add_option("--heads", convert.heads, "decoder_attention_heads")->required();
  command->add_option("--segment-lengths", convert.segment_lengths, "segment_length: W,W,...")
      ->required()
      ->delimiter(',');
  command->add_option("--dilation-rates", convert.dilation_rates, "dilated_ratio: R,R,...")
      ->required()
      ->delimiter(',');
  command->add_flag("--scaled-embedding", convert.scaled_embedding,
                    "no_scale_embedding is False, where True is the default");
  return command;
}

// The exit codes are those of ringctl, which calls these commands.
int ExitCodeOf(absl::Status status) {
  if (status.ok() && !std::cout.flush()) {
    status = absl::InternalError("standard output cannot be written");
  }
  if (!status.ok()) std::cerr << "ringmaster-worker: " << status.message() << "\n";
  return ExitCodeFor(status.code());
}

int RunConvertTorchscale(const ConvertTorchscaleOptions& options) {
  const absl::StatusOr<std::string> job_file = ConvertTorchscale(options);
  std::cout << job_file.value_or("");
  return ExitCodeOf(job_file.status());
}

int RunGenerate(const GenerateOptions& options) {
  PrintableText text;
  const absl::Status status = Generate(options, [&text](const std::string& bytes) {
    for (const char c : bytes) {
      std::cout << text.Feed(static_cast<unsigned char>(c));
    }
    std::cout << std::flush;
  });
  std::cout << text.Finish();
  if (status.ok()) {
    std::cout << "\n";
  }
  return ExitCodeOf(status);
}

std::string Libraries() {
  return absl::StrCat("grpc/", grpc::Version(), " torch/", TORCH_VERSION, " ",
                      TransportVersion("ucx").value());
}

int Main(int argc, char** argv) {
  CLI::App app("Ringmaster's worker: trains on one device, as the coordinator says",
               "ringmaster-worker");
  Flags flags;
  AddDaemonFlags(app, flags.daemon, Libraries());
  AddFlags(app, flags);
  const CLI::App* generate = AddGenerate(app, flags.generate);
  const CLI::App* convert = AddConvertTorchscale(app, flags.convert);
  if (const auto code = ReadCommandLine(app, flags.daemon, argc, argv, WorkerMetrics::Markdown)) {
    return *code;
  }
  if (generate->parsed()) {
    return RunGenerate(flags.generate);
  }
  if (convert->parsed()) {
    return RunConvertTorchscale(flags.convert);
  }
  const WorkerOptions& worker = flags.worker;
  if (!flags.supervise) {
    return RunWorker(worker, NewIncarnation());
  }
  flags.worker.supervisor = NewIncarnation();
  return Supervise(
      {.run = [&worker](const std::string& incarnation) { return RunWorker(worker, incarnation); },
       .report =
           [&worker](const ChildExit& exit) { ReportExit(worker, exit, absl::Seconds(30)); }});
}

}  // namespace
}  // namespace ringmaster::worker

int main(int argc, char** argv) { return ringmaster::worker::Main(argc, argv); }
