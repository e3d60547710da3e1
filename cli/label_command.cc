#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "cli/commands.h"

namespace ringmaster::cli {
namespace {

// Words of kubectl's kind: "team=vision" sets a label, "team-" removes one.
absl::StatusOr<v1::UpdateTrainingJobRequest> LabelRequest(const std::vector<std::string>& words) {
  v1::UpdateTrainingJobRequest request;
  std::set<std::string> keys;
  for (const std::string& word : words) {
    const std::vector<std::string> parts = absl::StrSplit(word, absl::MaxSplits('=', 1));
    std::string key = parts[0];
    if (parts.size() == 2) {
      (*request.mutable_training_job()->mutable_labels())[key] = parts[1];
    } else if (absl::EndsWith(key, "-") && key.size() > 1) {
      key.pop_back();
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", word, "' is neither KEY=VALUE, which sets a label, nor KEY-, which removes one"));
    }
    if (!keys.insert(key).second) {
      return absl::InvalidArgumentError(absl::StrCat("'", key, "' is named twice"));
    }
    request.mutable_update_mask()->add_paths(absl::StrCat("labels.", key));
  }
  return request;
}

}  // namespace

void AddLabelCommand(CLI::App& app, CommandContext& context) {
  auto name = std::make_shared<std::string>();
  auto words = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand("label", "Set or remove a job's labels");
  command->add_option("JOB", *name, "Job id or full name")->required();
  command->add_option("LABELS", *words, "KEY=VALUE sets a label, KEY- removes one")->required();
  command->callback([&context, name, words] {
    context.Run([&](Client& client) -> absl::StatusOr<int> {
      ASSIGN_OR_RETURN(v1::UpdateTrainingJobRequest request, LabelRequest(*words));
      return UpdateJob(context, client, *name, std::move(request));
    });
  });
}

}  // namespace ringmaster::cli
