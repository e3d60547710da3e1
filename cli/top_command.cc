#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/job_table.h"
#include "cli/screen.h"
#include "cli/worker_table.h"

namespace ringmaster::cli {
namespace {

using v1::TrainingJobStatus;

constexpr absl::Duration kInterval = absl::Seconds(2);
// More than a screen has lines.
constexpr int kListed = 200;

absl::Status AddJobs(Client& client, const CommandContext& to_text, bool all_projects) {
  v1::ListTrainingJobsRequest request;
  request.set_parent(all_projects ? "projects/-" : client.Parent());
  request.set_page_size(kListed);
  // Those with a ring first, so that a long queue does not push them out of sight.
  v1::ListTrainingJobsResponse running;
  for (const auto state :
       {TrainingJobStatus::STARTING, TrainingJobStatus::RUNNING, TrainingJobStatus::RECOVERING,
        TrainingJobStatus::PAUSING, TrainingJobStatus::CANCELLING}) {
    request.add_states(state);
  }
  RETURN_IF_ERROR(
      client.Call(&v1::JobService::Stub::ListTrainingJobs, client.jobs(), request, &running));
  request.clear_states();
  request.add_states(TrainingJobStatus::QUEUED);
  request.add_states(TrainingJobStatus::PAUSED);
  v1::ListTrainingJobsResponse waiting;
  RETURN_IF_ERROR(
      client.Call(&v1::JobService::Stub::ListTrainingJobs, client.jobs(), request, &waiting));
  std::vector<const v1::TrainingJob*> jobs;
  for (const auto& job : running.training_jobs()) jobs.push_back(&job);
  for (const auto& job : waiting.training_jobs()) jobs.push_back(&job);
  PrintJobs(to_text, jobs, /*one=*/false);
  return absl::OkStatus();
}

absl::Status AddWorkers(Client& client, const CommandContext& to_text) {
  v1::ListWorkersRequest request;
  request.set_page_size(kListed);
  v1::ListWorkersResponse response;
  const absl::Status status =
      client.Call(&v1::ClusterService::Stub::ListWorkers, client.cluster(), request, &response);
  // Whose token is of one project sees its jobs alone.
  if (absl::IsPermissionDenied(status)) return absl::OkStatus();
  RETURN_IF_ERROR(status);
  std::vector<const v1::Worker*> workers;
  for (const auto& worker : response.workers()) workers.push_back(&worker);
  *to_text.out << "\n";
  PrintWorkers(to_text, workers);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Picture(Client& client, const CommandContext& context,
                                    bool all_projects) {
  std::ostringstream text;
  CommandContext to_text = context;
  to_text.out = &text;
  to_text.options.output = OutputFormat::kTable;
  RETURN_IF_ERROR(AddJobs(client, to_text, all_projects));
  RETURN_IF_ERROR(AddWorkers(client, to_text));
  return text.str();
}

absl::StatusOr<int> Top(Client& client, CommandContext& context, bool all_projects) {
  // What is wrong from the beginning is told as by other commands.
  ASSIGN_OR_RETURN(std::string picture, Picture(client, context, all_projects));
  if (!Screen::Possible()) {
    *context.out << picture;
    return kExitOk;
  }
  Screen screen;
  std::string trouble;
  for (;;) {
    screen.Draw(absl::StrCat(context.options.address, "  ",
                             absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()),
                             "  q quits", trouble, "\n\n", picture));
    if (screen.Quits(kInterval)) return kExitOk;
    absl::StatusOr<std::string> next = Picture(client, context, all_projects);
    trouble = next.ok() ? "" : absl::StrCat("  not up to date: ", next.status().message());
    if (next.ok()) picture = *std::move(next);
  }
}

}  // namespace

void AddTopCommand(CLI::App& app, CommandContext& context) {
  auto all_projects = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "top", "Jobs that have not ended, and workers, on one screen that is kept up to date");
  command->add_flag("--all-projects", *all_projects, "Jobs of all projects");
  command->callback([&context, all_projects] {
    context.Run([&](Client& client) { return Top(client, context, *all_projects); });
  });
}

}  // namespace ringmaster::cli
