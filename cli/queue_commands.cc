#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

using Stub = v1::QueueService::Stub;

// The queue's name; `queue` is an id or a full name.
std::string QueueName(const std::string& queue) {
  return absl::StrContains(queue, '/') ? queue : absl::StrCat("queues/", queue);
}

std::vector<std::string> Row(const v1::Queue& queue) {
  std::vector<std::string> projects;
  for (const std::string& project : queue.projects()) projects.push_back(ShortName(project));
  return {ShortName(queue.name()),
          absl::StrCat(queue.max_priority()),
          absl::StrCat(queue.weight()),
          queue.max_workers() == 0 ? absl::StrCat(queue.held_workers())
                                   : absl::StrCat(queue.held_workers(), "/", queue.max_workers()),
          absl::StrCat(queue.admitted_jobs()),
          absl::StrCat(queue.pending_jobs()),
          projects.empty() ? "all" : absl::StrJoin(projects, ",")};
}

void Print(const CommandContext& context, const std::vector<const v1::Queue*>& queues) {
  if (context.options.output == OutputFormat::kName) {
    for (const auto* queue : queues) *context.out << queue->name() << "\n";
  } else if (context.options.output == OutputFormat::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const auto* queue : queues) rows.push_back(Row(*queue));
    PrintTable(*context.out,
               {"NAME", "MAX PRIORITY", "WEIGHT", "WORKERS", "ADMITTED", "PENDING", "PROJECTS"},
               rows);
  } else {
    PrintMessages(*context.out, {queues.begin(), queues.end()}, context.options.output);
  }
}

absl::StatusOr<int> List(Client& client, CommandContext& context, bool all) {
  v1::ListQueuesRequest request;
  request.set_parent(all ? "projects/-" : client.Parent());
  v1::ListQueuesResponse reply;
  RETURN_IF_ERROR(client.Call(&Stub::ListQueues, client.queues(), request, &reply));
  std::vector<const v1::Queue*> queues;
  for (const v1::Queue& queue : reply.queues()) queues.push_back(&queue);
  Print(context, queues);
  return kExitOk;
}

void AddList(CLI::App& group, CommandContext& context) {
  auto all = std::make_shared<bool>(false);
  CLI::App* list = group.add_subcommand("list", "List the queues that the project may submit to");
  list->add_flag("--all-projects", *all, "Of every project");
  list->callback([&context, all] {
    context.Run([&](Client& client) { return List(client, context, *all); });
  });
}

// What flags say of a queue: only what was given is changed.
struct Settings {
  std::string name;
  v1::UpdateQueueRequest request;
};

void AddSettings(CLI::App& command, const std::shared_ptr<Settings>& settings) {
  command.add_option("QUEUE", settings->name, "Queue id or full name")->required();
  const auto changed = [settings](const char* field) {
    settings->request.mutable_update_mask()->add_paths(field);
    return settings->request.mutable_queue();
  };
  command.add_option_function<int32_t>(
      "--max-priority",
      [changed](int32_t priority) { changed("max_priority")->set_max_priority(priority); },
      "What priorities of its jobs may be at most; 1000 unless given");
  command.add_option_function<int32_t>(
      "--weight", [changed](int32_t weight) { changed("weight")->set_weight(weight); },
      "Its share of the workers, beside others' weights; 1 unless given");
  command.add_option_function<int32_t>(
      "--max-workers",
      [changed](int32_t workers) { changed("max_workers")->set_max_workers(workers); },
      "How many workers its jobs may hold together; 0: any number");
  command
      .add_option_function<std::vector<std::string>>(
          "--projects",
          [changed](const std::vector<std::string>& projects) {
            v1::Queue* queue = changed("projects");
            for (const std::string& project : projects) {
              if (!project.empty()) queue->add_projects(absl::StrCat("projects/", project));
            }
          },
          "Projects that may submit to it, separated by commas; empty: all")
      ->delimiter(',');
}

// A command that answers with a queue.
template <typename Request>
void Ask(CommandContext& context, const Request& request,
         grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, v1::Queue*)) {
  context.Run([&](Client& client) -> absl::StatusOr<int> {
    v1::Queue queue;
    RETURN_IF_ERROR(client.Call(method, client.queues(), request, &queue));
    Print(context, {&queue});
    return kExitOk;
  });
}

void AddCreate(CLI::App& group, CommandContext& context) {
  auto settings = std::make_shared<Settings>();
  CLI::App* create = group.add_subcommand("create", "Make a queue");
  AddSettings(*create, settings);
  create->callback([&context, settings] {
    v1::CreateQueueRequest request;
    request.set_queue_id(ShortName(settings->name));
    *request.mutable_queue() = settings->request.queue();
    Ask(context, request, &Stub::CreateQueue);
  });
}

void AddUpdate(CLI::App& group, CommandContext& context) {
  auto settings = std::make_shared<Settings>();
  CLI::App* update = group.add_subcommand("update", "Change what flags name of a queue");
  AddSettings(*update, settings);
  update->callback([&context, settings] {
    v1::UpdateQueueRequest request = settings->request;
    request.mutable_queue()->set_name(QueueName(settings->name));
    Ask(context, request, &Stub::UpdateQueue);
  });
}

absl::StatusOr<int> Delete(Client& client, CommandContext& context, const std::string& name) {
  v1::DeleteQueueRequest request;
  request.set_name(QueueName(name));
  google::protobuf::Empty reply;
  RETURN_IF_ERROR(client.Call(&Stub::DeleteQueue, client.queues(), request, &reply));
  *context.out << request.name() << " deleted\n";
  return kExitOk;
}

}  // namespace

void AddQueueCommands(CLI::App& app, CommandContext& context) {
  CLI::App* group = app.add_subcommand("queues", "List, make, change and delete queues of jobs");
  group->require_subcommand(1);
  AddList(*group, context);
  AddCreate(*group, context);
  AddUpdate(*group, context);
  auto name = std::make_shared<std::string>();
  CLI::App* remove = group->add_subcommand("delete", "Delete a queue without unended jobs");
  remove->add_option("QUEUE", *name, "Queue id or full name")->required();
  remove->callback([&context, name] {
    context.Run([&](Client& client) { return Delete(client, context, *name); });
  });
}

}  // namespace ringmaster::cli
