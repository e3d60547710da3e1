#include "cli/commands.h"

namespace ringmaster::cli {

void CommandContext::Run(const std::function<absl::StatusOr<int>(Client&)>& body) {
  RunLocal([&]() -> absl::StatusOr<int> {
    auto client = Client::Create(options);
    if (!client.ok()) {
      return client.status();
    }
    return body(**client);
  });
}

void CommandContext::RunLocal(const std::function<absl::StatusOr<int>()>& body) {
  const absl::StatusOr<int> result = body();
  if (result.ok()) {
    exit_code = *result;
    return;
  }
  out->flush();
  *err << "error: " << result.status().message() << "\n";
  exit_code = ExitCodeFor(result.status().code());
}

}  // namespace ringmaster::cli
