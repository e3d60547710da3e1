#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/human_bytes.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

std::vector<std::string> Row(const v1::Worker& worker) {
  const auto& hardware = worker.hardware();
  return {ShortName(worker.name()),
          LowerEnumName(v1::Worker::State_descriptor(), worker.state()),
          LowerEnumName(v1::Device_descriptor(), hardware.device()),
          hardware.device_name(),
          HumanBytes(static_cast<double>(hardware.memory_bytes())),
          hardware.host(),
          worker.training_job().empty()
              ? "-"
              : absl::StrCat(ShortName(worker.training_job()), " rank ", worker.rank()),
          HumanDuration(FromProto(worker.heartbeat_age()))};
}

absl::StatusOr<int> Workers(Client& client, CommandContext& context) {
  v1::ListWorkersRequest request;
  request.set_page_size(1000);
  std::vector<std::unique_ptr<v1::ListWorkersResponse>> pages;
  std::vector<const v1::Worker*> workers;
  do {
    pages.push_back(std::make_unique<v1::ListWorkersResponse>());
    RETURN_IF_ERROR(client.Call(&v1::ClusterService::Stub::ListWorkers, client.cluster(), request,
                                pages.back().get()));
    for (const v1::Worker& worker : pages.back()->workers()) {
      workers.push_back(&worker);
    }
    request.set_page_token(pages.back()->next_page_token());
  } while (!request.page_token().empty());

  if (context.options.output == OutputFormat::kName) {
    for (const auto* worker : workers) {
      *context.out << worker->name() << "\n";
    }
  } else if (context.options.output == OutputFormat::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const auto* worker : workers) {
      rows.push_back(Row(*worker));
    }
    PrintTable(*context.out,
               {"NAME", "STATE", "DEVICE", "MODEL", "MEMORY", "HOST", "JOB", "HEARTBEAT"}, rows);
  } else {
    PrintMessages(*context.out, {workers.begin(), workers.end()}, context.options.output);
  }
  return kExitOk;
}

}  // namespace

void AddClusterCommands(CLI::App& app, CommandContext& context) {
  app.add_subcommand("workers", "List workers and what they do")->callback([&context] {
    context.Run([&](Client& client) { return Workers(client, context); });
  });
}

}  // namespace ringmaster::cli
