#include "cli/job_table.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

std::vector<std::string> Row(const v1::TrainingJob& job, absl::Time now) {
  const auto& progress = job.status().progress();
  const auto& parallel = job.spec().parallel();
  return {ShortName(job.name()),
          StateName(job),
          absl::StrCat(progress.step(), "/", job.spec().steps()),
          progress.step() > 0 ? absl::StrFormat("%.4f", progress.loss()) : "-",
          progress.step() > 0 ? HumanCount(progress.tokens_per_second()) : "-",
          parallel.replicas() > 1 ? absl::StrCat(parallel.ring_size(), "x", parallel.replicas())
                                  : absl::StrCat(parallel.ring_size()),
          absl::StrCat(job.status().generation()),
          absl::StrCat(job.spec().priority()),
          Age(job.create_time(), now)};
}

}  // namespace

void PrintJobs(const CommandContext& context, const std::vector<const v1::TrainingJob*>& jobs,
               bool one) {
  switch (context.options.output) {
    case OutputFormat::kName:
      for (const auto* job : jobs) {
        *context.out << job->name() << "\n";
      }
      return;
    case OutputFormat::kTable: {
      std::vector<std::vector<std::string>> rows;
      for (const auto* job : jobs) {
        rows.push_back(Row(*job, absl::Now()));
      }
      PrintTable(
          *context.out,
          {"NAME", "STATE", "STEP", "LOSS", "TOKENS/S", "RING", "GENERATION", "PRIORITY", "AGE"},
          rows);
      return;
    }
    default:
      if (one) {
        PrintMessage(*context.out, *jobs.front(), context.options.output);
      } else {
        PrintMessages(*context.out, {jobs.begin(), jobs.end()}, context.options.output);
      }
  }
}

}  // namespace ringmaster::cli
