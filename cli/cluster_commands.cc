#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/worker_table.h"

namespace ringmaster::cli {
namespace {

// The worker's name; `worker` is an id or a full name.
std::string WorkerName(const std::string& worker) {
  return absl::StrContains(worker, '/') ? worker : absl::StrCat("workers/", worker);
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

  PrintWorkers(context, workers);
  return kExitOk;
}

// A command that changes one worker and shows it.
template <typename Request>
CLI::App* AddChange(CLI::App& app, CommandContext& context, const std::string& verb,
                    const std::string& description, const std::shared_ptr<Request>& request,
                    grpc::Status (v1::ClusterService::Stub::*method)(grpc::ClientContext*,
                                                                     const Request&, v1::Worker*)) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(verb, description);
  command->add_option("WORKER", *name, "Worker id or full name")->required();
  command->callback([&context, name, request, method] {
    context.Run([&](Client& client) -> absl::StatusOr<int> {
      request->set_name(WorkerName(*name));
      v1::Worker worker;
      RETURN_IF_ERROR(client.Call(method, client.cluster(), *request, &worker));
      PrintWorkers(context, {&worker});
      return kExitOk;
    });
  });
  return command;
}

// The same for one that takes work away.
template <typename Request>
void AddCordon(CLI::App& app, CommandContext& context, const std::string& verb,
               const std::string& description,
               grpc::Status (v1::ClusterService::Stub::*method)(grpc::ClientContext*,
                                                                const Request&, v1::Worker*)) {
  auto request = std::make_shared<Request>();
  CLI::App* command = AddChange(app, context, verb, description, request, method);
  command->add_option_function<std::string>(
      "--reason", [request](const std::string& reason) { request->set_reason(reason); },
      "Why, for people");
}

}  // namespace

void AddClusterCommands(CLI::App& app, CommandContext& context) {
  app.add_subcommand("workers", "List workers and what they do")->callback([&context] {
    context.Run([&](Client& client) { return Workers(client, context); });
  });
  using Stub = v1::ClusterService::Stub;
  AddCordon<v1::CordonWorkerRequest>(app, context, "cordon", "Keep a worker from getting new work",
                                     &Stub::CordonWorker);
  AddCordon<v1::DrainWorkerRequest>(app, context, "drain",
                                    "Cordon a worker and let its job leave it at a checkpoint",
                                    &Stub::DrainWorker);
  AddChange(app, context, "uncordon", "Let a worker get work again",
            std::make_shared<v1::UncordonWorkerRequest>(), &Stub::UncordonWorker);
}

}  // namespace ringmaster::cli
