#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/human_bytes.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/job_file.h"
#include "cli/job_table.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

using v1::JobService;
using v1::TrainingJob;
using v1::TrainingJobStatus;

struct SubmitOptions {
  std::string file;
  std::vector<std::string> overrides;
  std::string request_id;
  bool dry_run = false;
  bool wait = false;
};

absl::StatusOr<int> Submit(Client& client, CommandContext& context, const SubmitOptions& options) {
  ASSIGN_OR_RETURN(JobFile file, ReadJobFile(options.file, options.overrides));
  v1::CreateTrainingJobRequest request;
  request.set_parent(client.Parent());
  request.set_training_job_id(file.id);
  *request.mutable_training_job()->mutable_spec() = std::move(file.spec);
  request.mutable_training_job()->mutable_labels()->insert(file.labels.begin(), file.labels.end());
  request.set_request_id(options.request_id.empty() ? NewRequestId() : options.request_id);
  request.set_validate_only(options.dry_run);
  TrainingJob job;
  RETURN_IF_ERROR(client.Call(&JobService::Stub::CreateTrainingJob, client.jobs(), request, &job));
  if (options.dry_run && context.options.output == OutputFormat::kTable) {
    *context.out << "valid; nothing was stored\n";
    PrintMessage(*context.out, job.spec(), OutputFormat::kYaml);
    return kExitOk;
  }
  PrintJobs(context, {&job}, true);
  return options.wait && !options.dry_run ? WatchJob(client, context, job.name()) : kExitOk;
}

absl::StatusOr<TrainingJob> Get(Client& client, const std::string& name) {
  v1::GetTrainingJobRequest request;
  request.set_name(client.JobName(name));
  TrainingJob job;
  RETURN_IF_ERROR(client.Call(&JobService::Stub::GetTrainingJob, client.jobs(), request, &job));
  return job;
}

struct ListOptions {
  std::vector<std::string> states;
  std::string filter;
  std::string order_by;
  bool all_projects = false;
};

absl::StatusOr<int> List(Client& client, CommandContext& context, const ListOptions& options) {
  v1::ListTrainingJobsRequest request;
  request.set_parent(options.all_projects ? "projects/-" : client.Parent());
  request.set_page_size(1000);
  request.set_filter(options.filter);
  request.set_order_by(options.order_by);
  for (const std::string& state : options.states) {
    TrainingJobStatus::State value;
    if (!TrainingJobStatus::State_Parse(absl::AsciiStrToUpper(state), &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--state ", state, " is not one of queued, starting, running, recovering, ",
                       "cancelling, succeeded, failed, cancelled, pausing, paused"));
    }
    request.add_states(value);
  }
  std::vector<std::unique_ptr<v1::ListTrainingJobsResponse>> pages;
  std::vector<const TrainingJob*> jobs;
  do {
    pages.push_back(std::make_unique<v1::ListTrainingJobsResponse>());
    RETURN_IF_ERROR(client.Call(&JobService::Stub::ListTrainingJobs, client.jobs(), request,
                                pages.back().get()));
    for (const TrainingJob& job : pages.back()->training_jobs()) {
      jobs.push_back(&job);
    }
    request.set_page_token(pages.back()->next_page_token());
  } while (!request.page_token().empty());
  PrintJobs(context, jobs, false);
  return kExitOk;
}

std::string Milliseconds(bool known, int64_t ms) { return known ? absl::StrCat(ms) : "-"; }

void PrintEpisodes(std::ostream& out, const TrainingJobStatus& status) {
  if (status.episodes().empty()) {
    return;
  }
  out << "\nRecoveries (milliseconds a phase):\n";
  std::vector<std::vector<std::string>> rows;
  for (const auto& episode : status.episodes()) {
    rows.push_back({absl::StrCat(episode.from_generation(), "->", episode.to_generation()),
                    LowerEnumName(v1::RecoveryEpisode::Cause_descriptor(), episode.cause()),
                    Milliseconds(episode.has_detect_ms(), episode.detect_ms()),
                    Milliseconds(episode.has_abort_ms(), episode.abort_ms()),
                    Milliseconds(episode.has_form_ms(), episode.form_ms()),
                    Milliseconds(episode.has_restore_ms(), episode.restore_ms()),
                    Milliseconds(episode.has_first_step_ms(), episode.first_step_ms()),
                    absl::StrCat(episode.lost_steps()),
                    LowerEnumName(v1::RecoveryEpisode::Restore_descriptor(), episode.restore()),
                    absl::StrJoin(episode.joined_workers(), ", ")});
  }
  PrintTable(out,
             {"GENERATION", "CAUSE", "DETECT", "ABORT", "FORM", "RESTORE", "FIRST_STEP",
              "LOST_STEPS", "STATE_FROM", "JOINED"},
             rows);
}

void PrintDescription(std::ostream& out, const TrainingJob& job) {
  const auto& status = job.status();
  const auto& progress = status.progress();
  out << "Name:        " << job.name() << "\n";
  out << "State:       " << StateName(job);
  if (!status.state_reason().empty()) out << " (" << status.state_reason() << ")";
  out << "\n";
  if (status.pause_requested() && status.state() != TrainingJobStatus::PAUSED) {
    out << "Pause:       as soon as its ring has written a checkpoint\n";
  }
  if (status.has_pending_reason()) {
    out << "Waiting:     " << status.pending_reason().code() << ": "
        << status.pending_reason().message() << "\n";
  }
  out << "Queue:       " << job.spec().queue() << "\n";
  out << "Priority:    " << job.spec().priority() << "\n";
  out << "Step:        " << progress.step() << " of " << job.spec().steps() << "\n";
  if (progress.step() > 0) {
    out << absl::StrFormat("Loss:        %.6f nats per token\n", progress.loss());
    if (progress.has_validation_loss()) {
      out << absl::StrFormat("Validation:  %.6f nats per token\n", progress.validation_loss());
    }
    out << "Speed:       " << HumanCount(progress.tokens_per_second()) << " tokens/s\n";
    out << "Exchange:    " << HumanBytes(progress.exchanged_bytes_per_step())
        << " a step (planned: " << HumanBytes(progress.planned_bytes_per_step()) << ")\n";
  }
  if (status.has_run_duration()) {
    out << "Ran for:     " << HumanDuration(FromProto(status.run_duration()));
    if (job.spec().has_max_runtime()) {
      out << " of at most " << absl::FormatDuration(FromProto(job.spec().max_runtime()));
    }
    out << "\n";
  }
  out << "Generation:  " << status.generation() << "\n";
  if (!status.last_checkpoint().empty()) out << "Checkpoint:  " << status.last_checkpoint() << "\n";
  for (const std::string& change : status.resume_overrides()) {
    out << "Override:    " << change << "\n";
  }
  if (!status.ranks().empty()) {
    out << "\nRing:\n";
    std::vector<std::vector<std::string>> rows;
    for (const auto& rank : status.ranks()) {
      rows.push_back({absl::StrCat(rank.rank()), ShortName(rank.worker()), rank.host(),
                      rank.incarnation().substr(0, 8)});
    }
    PrintTable(out, {"RANK", "WORKER", "HOST", "INCARNATION"}, rows);
  }
  PrintEpisodes(out, status);
}

void PrintEstimate(std::ostream& out, const v1::EstimateTrainingJobResponse& estimate) {
  const auto& memory = estimate.memory();
  PrintTable(out, {"QUANTITY", "VALUE"},
             {{"parameters", HumanCount(estimate.parameters())},
              {"memory of the fullest rank", HumanBytes(memory.total_bytes())},
              {"  parameters", HumanBytes(memory.parameter_bytes())},
              {"  gradients", HumanBytes(memory.gradient_bytes())},
              {"  optimizer", HumanBytes(memory.optimizer_bytes())},
              {"  activations", HumanBytes(memory.activation_bytes())},
              {"  exchange", HumanBytes(memory.exchange_bytes())},
              {"FLOPs a step", HumanCount(estimate.step_flops())},
              {"attention bytes sent a step", HumanBytes(estimate.exchanged_bytes_per_step())},
              {"gradient bytes a step", HumanBytes(estimate.gradient_bytes_per_step())},
              {"tokens a rank", absl::StrJoin(estimate.shard_tokens(), " ")}});
  for (const std::string& layout : estimate.layouts()) {
    out << "layout, " << layout << "\n";
  }
  for (const std::string& warning : estimate.warnings()) {
    out << "warning: " << warning << "\n";
  }
  out << "By formula, not measured.\n";
}

void AddSubmit(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<SubmitOptions>();
  CLI::App* command = app.add_subcommand("submit", "Submit a job file");
  command->add_option("FILE", options->file, "YAML job file, or - for standard input")->required();
  command->add_option("--set", options->overrides, "Replace a field: --set optimizer.lr=3e-4")
      ->take_all()
      ->expected(1);
  command->add_option("--request-id", options->request_id,
                      "UUID that makes a repeated submission the same job");
  command->add_flag("--dry-run", options->dry_run, "Check everything, store nothing");
  command->add_flag("--wait", options->wait, "Watch the job until it ends");
  command->callback([&context, options] {
    context.Run([&](Client& client) { return Submit(client, context, *options); });
  });
}

void AddEstimate(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<SubmitOptions>();
  CLI::App* command = app.add_subcommand("estimate", "What a job file would need, by formula");
  command->add_option("FILE", options->file, "YAML job file, or - for standard input")->required();
  command->add_option("--set", options->overrides, "Replace a field")->take_all()->expected(1);
  command->callback([&context, options] {
    context.Run([&](Client& client) -> absl::StatusOr<int> {
      ASSIGN_OR_RETURN(JobFile file, ReadJobFile(options->file, options->overrides));
      v1::EstimateTrainingJobRequest request;
      *request.mutable_spec() = std::move(file.spec);
      v1::EstimateTrainingJobResponse estimate;
      RETURN_IF_ERROR(
          client.Call(&JobService::Stub::EstimateTrainingJob, client.jobs(), request, &estimate));
      if (context.options.output == OutputFormat::kTable) {
        PrintEstimate(*context.out, estimate);
      } else {
        PrintMessage(*context.out, estimate, context.options.output);
      }
      return kExitOk;
    });
  });
}

// A command whose one argument is a job.
void AddOneJob(CLI::App& app, CommandContext& context, const std::string& verb,
               const std::string& help,
               std::function<absl::StatusOr<int>(Client&, const std::string&)> body) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(verb, help);
  command->add_option("JOB", *name, "Job id or full name")->required();
  command->callback([&context, name, body = std::move(body)] {
    context.Run([&](Client& client) { return body(client, *name); });
  });
}

void AddList(CLI::App& app, CommandContext& context) {
  auto options = std::make_shared<ListOptions>();
  CLI::App* command = app.add_subcommand("list", "List jobs, newest first");
  command->add_option("--state", options->states, "Only these states")->delimiter(',');
  command->add_option("--filter", options->filter,
                      "Only jobs that match: 'labels.team = vision AND steps > 100'");
  command->add_option("--order-by", options->order_by,
                      "Fields separated by commas, 'update_time desc'");
  command->add_flag("--all-projects", options->all_projects, "Of every project");
  command->callback([&context, options] {
    context.Run([&](Client& client) { return List(client, context, *options); });
  });
}

// A command that changes one job by a request of its name and an id, and prints what it is then.
template <typename Request>
void AddChange(CLI::App& app, CommandContext& context, const char* name, const char* help,
               grpc::Status (JobService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                        TrainingJob*)) {
  AddOneJob(app, context, name, help,
            [&context, method](Client& client, const std::string& job) -> absl::StatusOr<int> {
              Request request;
              request.set_name(client.JobName(job));
              request.set_request_id(NewRequestId());
              TrainingJob changed;
              RETURN_IF_ERROR(client.Call(method, client.jobs(), request, &changed));
              PrintJobs(context, {&changed}, true);
              return kExitOk;
            });
}

}  // namespace

absl::StatusOr<int> UpdateJob(CommandContext& context, Client& client, const std::string& job,
                              v1::UpdateTrainingJobRequest request) {
  request.mutable_training_job()->set_name(client.JobName(job));
  request.set_request_id(NewRequestId());
  v1::TrainingJob updated;
  RETURN_IF_ERROR(
      client.Call(&v1::JobService::Stub::UpdateTrainingJob, client.jobs(), request, &updated));
  PrintJobs(context, {&updated}, true);
  return kExitOk;
}

void AddJobCommands(CLI::App& app, CommandContext& context) {
  AddSubmit(app, context);
  AddList(app, context);
  AddEstimate(app, context);
  AddOneJob(app, context, "get", "One job as a row, or with -o yaml whole",
            [&context](Client& client, const std::string& name) -> absl::StatusOr<int> {
              ASSIGN_OR_RETURN(const TrainingJob job, Get(client, name));
              PrintJobs(context, {&job}, true);
              return kExitOk;
            });
  AddOneJob(app, context, "describe", "One job with its ring and recoveries",
            [&context](Client& client, const std::string& name) -> absl::StatusOr<int> {
              ASSIGN_OR_RETURN(const TrainingJob job, Get(client, name));
              if (context.options.output == OutputFormat::kTable) {
                PrintDescription(*context.out, job);
              } else {
                PrintJobs(context, {&job}, true);
              }
              return kExitOk;
            });
  AddChange(app, context, "pause", "Checkpoint a job and free its workers until it is resumed",
            &JobService::Stub::PauseTrainingJob);
  AddChange(app, context, "resume", "Queue a paused job again",
            &JobService::Stub::ResumeTrainingJob);
  AddChange(app, context, "cancel", "Stop a job; its checkpoints stay",
            &JobService::Stub::CancelTrainingJob);
  AddOneJob(app, context, "delete", "Forget an ended job; its directory stays",
            [&context](Client& client, const std::string& name) -> absl::StatusOr<int> {
              v1::DeleteTrainingJobRequest request;
              request.set_name(client.JobName(name));
              google::protobuf::Empty nothing;
              RETURN_IF_ERROR(client.Call(&JobService::Stub::DeleteTrainingJob, client.jobs(),
                                          request, &nothing));
              *context.out << request.name() << " deleted\n";
              return kExitOk;
            });
}

}  // namespace ringmaster::cli
