#include "cli/retry_stream.h"

namespace ringmaster::cli {
namespace {

// A coordinator that is being restarted is back well within this time.
constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr absl::Duration kPause = absl::Seconds(1);
// A shorter gap is not worth a word.
constexpr absl::Duration kToldAfter = absl::Seconds(2);

}  // namespace

absl::Status RetryStream(const std::function<absl::Status()>& connect,
                         const std::function<absl::Status(bool& answered)>& read, std::ostream& err,
                         const RetryClock& clock) {
  absl::Time last_seen = clock.now();
  bool told = false;
  while (true) {
    absl::Status status = connect();
    if (status.ok()) {
      bool answered = false;
      status = read(answered);
      if (answered) {
        last_seen = clock.now();
        told = false;
      }
    }
    const absl::Duration gap = clock.now() - last_seen;
    const bool again = absl::IsUnavailable(status) || absl::IsAborted(status);
    if (!again || gap > kPatience) return status;
    if (gap >= kToldAfter && !told) {
      err << status.message() << "; trying again\n" << std::flush;
      told = true;
    }
    clock.pause(kPause);
  }
}

}  // namespace ringmaster::cli
