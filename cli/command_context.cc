#include <chrono>
#include <thread>

#include "cli/commands.h"

namespace ringmaster::cli {
namespace {

// Attempts in a row; a coordinator that is being restarted is back well within this time.
constexpr int kAttemptsMax = 60;
constexpr auto kPause = std::chrono::seconds(1);
// A shorter gap is not worth a word.
constexpr int kToldAfter = 3;

}  // namespace

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

absl::Status ReadStream(CommandContext& context, bool follow,
                        const std::function<absl::Status(bool& answered)>& read) {
  for (int attempts = 1;; ++attempts) {
    bool answered = false;
    absl::Status status = read(answered);
    if (answered) attempts = 1;
    const bool again = absl::IsUnavailable(status) || absl::IsAborted(status);
    if (!follow || !again || attempts > kAttemptsMax) return status;
    if (attempts == kToldAfter) {
      *context.err << status.message() << "; trying again\n" << std::flush;
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace ringmaster::cli
