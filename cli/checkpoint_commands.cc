#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/absolute_path.h"
#include "base/human_bytes.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

using v1::Checkpoint;
using v1::CheckpointService;

void PrintCheckpoints(CommandContext& context, const std::vector<const Checkpoint*>& checkpoints,
                      bool one) {
  if (context.options.output == OutputFormat::kName) {
    for (const auto* checkpoint : checkpoints) {
      *context.out << checkpoint->name() << "\n";
    }
  } else if (context.options.output == OutputFormat::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const auto* checkpoint : checkpoints) {
      rows.push_back(
          {ShortName(checkpoint->name()), absl::StrCat(checkpoint->step()),
           absl::StrCat(checkpoint->generation()),
           HumanBytes(static_cast<double>(checkpoint->bytes())),
           absl::StrCat(checkpoint->shards_size()), Age(checkpoint->create_time(), absl::Now()),
           checkpoint->set_aside() ? "set aside" : "committed", checkpoint->directory()});
    }
    PrintTable(*context.out,
               {"NAME", "STEP", "GENERATION", "SIZE", "SHARDS", "AGE", "STATE", "DIRECTORY"}, rows);
  } else if (one) {
    PrintMessage(*context.out, *checkpoints.front(), context.options.output);
  } else {
    PrintMessages(*context.out, {checkpoints.begin(), checkpoints.end()}, context.options.output);
  }
}

absl::StatusOr<int> List(Client& client, CommandContext& context, const std::string& job) {
  v1::ListCheckpointsRequest request;
  request.set_parent(client.JobName(job));
  request.set_page_size(1000);
  std::vector<std::unique_ptr<v1::ListCheckpointsResponse>> pages;
  std::vector<const Checkpoint*> checkpoints;
  do {
    pages.push_back(std::make_unique<v1::ListCheckpointsResponse>());
    RETURN_IF_ERROR(client.Call(&CheckpointService::Stub::ListCheckpoints, client.checkpoints(),
                                request, pages.back().get()));
    for (const Checkpoint& checkpoint : pages.back()->checkpoints()) {
      checkpoints.push_back(&checkpoint);
    }
    request.set_page_token(pages.back()->next_page_token());
  } while (!request.page_token().empty());
  PrintCheckpoints(context, checkpoints, false);
  return kExitOk;
}

absl::StatusOr<Checkpoint> Get(Client& client, const std::string& name) {
  v1::GetCheckpointRequest request;
  request.set_name(name);
  Checkpoint checkpoint;
  RETURN_IF_ERROR(client.Call(&CheckpointService::Stub::GetCheckpoint, client.checkpoints(),
                              request, &checkpoint));
  return checkpoint;
}

absl::StatusOr<int> Import(Client& client, CommandContext& context, const std::string& directory) {
  v1::ImportCheckpointRequest request;
  request.set_parent(client.Parent());
  // "." and "runs/" are what people type and shells complete.
  ASSIGN_OR_RETURN(*request.mutable_directory(), AbsolutePath(directory));
  Checkpoint checkpoint;
  RETURN_IF_ERROR(client.Call(&CheckpointService::Stub::ImportCheckpoint, client.checkpoints(),
                              request, &checkpoint));
  PrintCheckpoints(context, {&checkpoint}, true);
  return kExitOk;
}

struct GenerateOptions {
  std::string job;
  std::string checkpoint;
  std::string prompt;
  int tokens = 200;
  double temperature = 0.8;
  uint64_t seed = 1;
  int threads = 0;
};

absl::StatusOr<std::string> CheckpointDirectory(Client& client, const GenerateOptions& options) {
  if (!options.checkpoint.empty() && !absl::StartsWith(options.checkpoint, "projects/")) {
    return options.checkpoint;
  }
  std::string name = options.checkpoint;
  if (name.empty()) {
    v1::GetTrainingJobRequest request;
    request.set_name(client.JobName(options.job));
    v1::TrainingJob job;
    RETURN_IF_ERROR(
        client.Call(&v1::JobService::Stub::GetTrainingJob, client.jobs(), request, &job));
    name = job.status().last_checkpoint();
    if (name.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(job.name(), " has no checkpoint yet; wait for checkpoint.interval_steps"));
    }
  }
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Get(client, name));
  return checkpoint.directory();
}

// Replaces this process by a command of the worker: ringctl itself links no torch.
absl::Status ExecWorker(std::vector<std::string> words) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string beside = (self.parent_path() / "ringmaster-worker").string();
  const std::string program =
      !error && access(beside.c_str(), X_OK) == 0 ? beside : "ringmaster-worker";
  words.insert(words.begin(), program);
  std::vector<char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(const_cast<char*>(word.c_str()));
  }
  arguments.push_back(nullptr);
  execvp(program.c_str(), arguments.data());
  return absl::InternalError(absl::StrCat("cannot run ", program, ": ", std::strerror(errno),
                                          "; it must be beside ringctl or on PATH"));
}

absl::Status ExecGenerate(const std::string& directory, const GenerateOptions& options) {
  return ExecWorker(
      {"generate", absl::StrCat("--checkpoint=", directory),
       absl::StrCat("--prompt=", options.prompt), absl::StrCat("--tokens=", options.tokens),
       absl::StrCat("--temperature=", options.temperature), absl::StrCat("--seed=", options.seed),
       absl::StrCat("--threads=", options.threads)});
}

struct ConvertTorchscaleOptions {
  std::string file;
  std::string directory;
  int64_t heads = 0;
  std::vector<int64_t> segment_lengths;
  std::vector<int64_t> dilation_rates;
  bool scaled_embedding = false;
};

void AddConvertTorchscale(CLI::App& group, CommandContext& context) {
  auto options = std::make_shared<ConvertTorchscaleOptions>();
  CLI::App* command = group.add_subcommand(
      "convert-torchscale", "Make one of a torchscale LongNet decoder's weights, on this machine");
  command->add_option("FILE", options->file, "Its state dict, a safetensors file")->required();
  command->add_option("--directory", options->directory, "To make; prints the beginning of a job")
      ->required();
  command->add_option("--heads", options->heads, "decoder_attention_heads")->required();
  command->add_option("--segment-lengths", options->segment_lengths, "segment_length: W,W,...")
      ->required()
      ->delimiter(',');
  command->add_option("--dilation-rates", options->dilation_rates, "dilated_ratio: R,R,...")
      ->required()
      ->delimiter(',');
  command->add_flag("--scaled-embedding", options->scaled_embedding,
                    "no_scale_embedding is False, where True is the default");
  command->callback([&context, options] {
    context.RunLocal([&]() -> absl::StatusOr<int> {
      std::vector<std::string> words = {
          "convert-torchscale", absl::StrCat("--directory=", options->directory),
          absl::StrCat("--heads=", options->heads),
          absl::StrCat("--segment-lengths=", absl::StrJoin(options->segment_lengths, ",")),
          absl::StrCat("--dilation-rates=", absl::StrJoin(options->dilation_rates, ","))};
      if (options->scaled_embedding) words.push_back("--scaled-embedding");
      words.insert(words.end(), {"--", options->file});
      return ExecWorker(std::move(words));
    });
  });
}

void AddGenerate(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate", "Print a sample from a checkpoint, computed on this machine's CPU");
  auto* job = command->add_option("JOB", options->job, "Job whose newest checkpoint is used");
  auto* checkpoint = command->add_option("--checkpoint", options->checkpoint,
                                         "Checkpoint name or directory instead of a job");
  checkpoint->excludes(job);
  command->add_option("--prompt", options->prompt, "Text to continue");
  command->add_option("--tokens", options->tokens, "Bytes to add")->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: the likeliest byte each time")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the sampling")->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "CPU threads to compute with; 0: as many as there are CPUs")
      ->check(CLI::Range(0, 4096));
  command->callback([&context, options] {
    context.Run([&](Client& client) -> absl::StatusOr<int> {
      if (options->job.empty() && options->checkpoint.empty()) {
        return absl::InvalidArgumentError("give a job, or --checkpoint");
      }
      ASSIGN_OR_RETURN(const std::string directory, CheckpointDirectory(client, *options));
      return ExecGenerate(directory, *options);
    });
  });
}

}  // namespace

void AddCheckpointCommands(CLI::App& app, CommandContext& context) {
  CLI::App* group = app.add_subcommand("checkpoints", "List, show and adopt checkpoints");
  group->require_subcommand(1);
  group->fallthrough();
  auto argument = std::make_shared<std::string>();
  CLI::App* list = group->add_subcommand("list", "Checkpoints of a job, newest first");
  list->add_option("JOB", *argument, "Job id or full name")->required();
  list->callback([&context, argument] {
    context.Run([&](Client& client) { return List(client, context, *argument); });
  });
  CLI::App* get = group->add_subcommand("get", "One checkpoint");
  get->add_option("NAME", *argument, "projects/P/trainingJobs/J/checkpoints/C")->required();
  get->callback([&context, argument] {
    context.Run([&](Client& client) -> absl::StatusOr<int> {
      ASSIGN_OR_RETURN(const Checkpoint checkpoint, Get(client, *argument));
      PrintCheckpoints(context, {&checkpoint}, true);
      return kExitOk;
    });
  });
  CLI::App* adopt = group->add_subcommand("import", "Adopt a directory with a manifest.json");
  adopt->add_option("DIR", *argument, "As the coordinator sees it")->required();
  adopt->callback([&context, argument] {
    context.Run([&](Client& client) { return Import(client, context, *argument); });
  });
  AddConvertTorchscale(*group, context);
  AddGenerate(app, context);
}

}  // namespace ringmaster::cli
