#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/exit_code.h"
#include "cli/client.h"

namespace ringmaster::cli {

// What a command runs with. Lives as long as the CLI11 application that the Add... functions fill.
struct CommandContext {
  GlobalOptions options;
  std::ostream* out = nullptr;
  std::ostream* err = nullptr;
  // True when `out` is a terminal: progress may be redrawn in place.
  bool terminal = false;
  // What main() returns.
  int exit_code = kExitOk;

  // Runs `body` with a connected client, and turns a failure into one "error: ..." line and the
  // exit code. `body` returns the exit code of success.
  void Run(const std::function<absl::StatusOr<int>(Client&)>& body);
  // The same for commands that need no coordinator.
  void RunLocal(const std::function<absl::StatusOr<int>()>& body);
};

// Sends a change of a job and prints what became of it.
absl::StatusOr<int> UpdateJob(CommandContext& context, Client& client, const std::string& job,
                              v1::UpdateTrainingJobRequest request);

// Each adds its subcommands; the folder's files are the command list.
// submit get list describe pause resume cancel delete estimate
void AddJobCommands(CLI::App& app, CommandContext& context);
void AddLabelCommand(CLI::App& app, CommandContext& context);     // label
void AddPriorityCommand(CLI::App& app, CommandContext& context);  // priority
void AddWatchCommand(CLI::App& app, CommandContext& context);     // watch
void AddTopCommand(CLI::App& app, CommandContext& context);       // top
void AddRecordCommands(CLI::App& app, CommandContext& context);   // logs metrics
void AddClusterCommands(CLI::App& app, CommandContext& context);  // workers cordon drain uncordon
void AddCheckpointCommands(CLI::App& app, CommandContext& context);  // checkpoints generate
void AddQueueCommands(CLI::App& app, CommandContext& context);       // queues
void AddTokenCommands(CLI::App& app, CommandContext& context);       // tokens
void AddExplainCommand(CLI::App& app, CommandContext& context);      // explain
void AddCompletionCommand(CLI::App& app, CommandContext& context);   // completion

// Follows a job until it is terminal, printing progress; the exit code is kExitOk only when it
// succeeded.
absl::StatusOr<int> WatchJob(Client& client, CommandContext& context, const std::string& name);

}  // namespace ringmaster::cli
