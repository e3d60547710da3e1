#include <memory>
#include <string>
#include <utility>

#include "cli/commands.h"

namespace ringmaster::cli {

void AddPriorityCommand(CLI::App& app, CommandContext& context) {
  auto name = std::make_shared<std::string>();
  auto priority = std::make_shared<int32_t>();
  CLI::App* command = app.add_subcommand("priority", "Change a job's place in the queue");
  command->add_option("JOB", *name, "Job id or full name")->required();
  command->add_option("PRIORITY", *priority, "-1000 to 1000; a higher one goes first")->required();
  command->callback([&context, name, priority] {
    context.Run([&](Client& client) {
      v1::UpdateTrainingJobRequest request;
      request.mutable_training_job()->mutable_spec()->set_priority(*priority);
      request.mutable_update_mask()->add_paths("spec.priority");
      return UpdateJob(context, client, *name, std::move(request));
    });
  });
}

}  // namespace ringmaster::cli
