#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

using v1::TrainingJob;
using v1::TrainingJobStatus;

constexpr int kBarWidth = 24;

bool Terminal(const TrainingJob& job) {
  const auto state = job.status().state();
  return state == TrainingJobStatus::SUCCEEDED || state == TrainingJobStatus::FAILED ||
         state == TrainingJobStatus::CANCELLED;
}

std::string ProgressLine(const TrainingJob& job) {
  const auto& progress = job.status().progress();
  const int64_t steps = std::max<int64_t>(1, job.spec().steps());
  const int filled = static_cast<int>(kBarWidth * std::min(progress.step(), steps) / steps);
  std::string line =
      absl::StrCat("[", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), "] ");
  absl::StrAppendFormat(&line, "%s step %d/%d", StateName(job), progress.step(),
                        job.spec().steps());
  if (progress.step() > 0) {
    absl::StrAppendFormat(&line, "  loss %.4f", progress.loss());
    if (progress.has_validation_loss()) {
      absl::StrAppendFormat(&line, "  val %.4f", progress.validation_loss());
    }
    absl::StrAppend(&line, "  ", HumanCount(progress.tokens_per_second()), " tok/s");
    if (progress.has_remaining()) {
      absl::StrAppend(&line, "  ETA ", HumanDuration(FromProto(progress.remaining())));
    }
  }
  if (!job.status().ranks().empty()) {
    absl::StrAppendFormat(&line, "  ring of %d, generation %d", job.status().ranks_size(),
                          job.status().generation());
  }
  if (job.status().has_pending_reason()) {
    absl::StrAppend(&line, "  (", job.status().pending_reason().message(), ")");
  }
  return line;
}

// Prints what changed: on a terminal the progress line is redrawn, elsewhere a line is printed when
// the state or generation changed, or a twentieth of the steps went by.
class ProgressPrinter {
 public:
  ProgressPrinter(std::ostream& out, bool terminal) : out_(out), terminal_(terminal) {}

  void Show(const TrainingJob& job) {
    const auto& status = job.status();
    const int64_t part = status.progress().step() * 20 / std::max<int64_t>(1, job.spec().steps());
    const std::string key = absl::StrCat(status.state(), "/", status.generation(), "/", part, "/",
                                         status.pending_reason().code());
    if (terminal_) {
      // Carriage return, then erase to the end of the line.
      out_ << "\r" << ProgressLine(job) << "\033[K" << std::flush;
      open_ = true;
    } else if (key != last_key_) {
      out_ << ProgressLine(job) << "\n" << std::flush;
    }
    last_key_ = key;
  }

  // What is printed next begins a line of its own.
  void EndLine() {
    if (std::exchange(open_, false)) out_ << "\n" << std::flush;
  }

 private:
  std::ostream& out_;
  const bool terminal_;
  bool open_ = false;
  std::string last_key_;
};

// One stream, until it shows the terminal job.
absl::StatusOr<TrainingJob> WatchOnce(Client& client, const std::string& name,
                                      ProgressPrinter& printer, bool& answered) {
  grpc::ClientContext context;
  v1::WatchTrainingJobsRequest request;
  request.set_name(name);
  auto reader = client.jobs().WatchTrainingJobs(&context, request);
  v1::WatchTrainingJobsResponse response;
  while (reader->Read(&response)) {
    answered = true;
    if (response.has_deleted_name()) {
      context.TryCancel();
      return absl::NotFoundError(absl::StrCat(name, " was deleted"));
    }
    if (!response.has_job()) {
      continue;
    }
    printer.Show(response.job());
    if (Terminal(response.job())) {
      context.TryCancel();
      return response.job();
    }
  }
  RETURN_IF_ERROR(client.Translate(reader->Finish()));
  return absl::UnavailableError("the coordinator closed the stream");
}

}  // namespace

absl::StatusOr<int> WatchJob(Client& client, CommandContext& context, const std::string& name) {
  // What other formats print is for programs: progress must not be mixed with it.
  const bool table = context.options.output == OutputFormat::kTable;
  ProgressPrinter printer(table ? *context.out : *context.err, table && context.terminal);
  TrainingJob job;
  RETURN_IF_ERROR(
      client.ReadStream(name, /*follow=*/true, *context.err, [&](bool& answered) -> absl::Status {
        auto ended = WatchOnce(client, name, printer, answered);
        printer.EndLine();
        ASSIGN_OR_RETURN(job, std::move(ended));
        return absl::OkStatus();
      }));
  if (job.status().state() == TrainingJobStatus::SUCCEEDED) return kExitOk;
  *context.err << job.name() << " " << StateName(job) << ": " << job.status().state_reason()
               << "\n";
  return kExitJobFailed;
}

void AddWatchCommand(CLI::App& app, CommandContext& context) {
  auto name = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("watch", "Follow a job until it ends; exit code 1 unless it succeeded");
  command->add_option("JOB", *name, "Job id or full name")->required();
  command->callback([&context, name] {
    context.Run([&](Client& client) { return WatchJob(client, context, client.JobName(*name)); });
  });
}

}  // namespace ringmaster::cli
