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
  const absl::Status& status = result.status();
  *err << "error: "
       << (status.message().empty() ? absl::StatusCodeToString(status.code())
                                    : std::string(status.message()))
       << "\n";
  exit_code = ExitCodeFor(status.code());
}

}  // namespace ringmaster::cli
