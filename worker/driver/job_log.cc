#include "worker/driver/job_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace ringmaster::worker {
namespace {

char LevelLetter(spdlog::level::level_enum level) {
  static constexpr char kLetters[] = "TDIWECO";
  return kLetters[std::clamp<int>(level, 0, 6)];
}

}  // namespace

void JobLog::Open(const std::string& job_directory, int rank, int64_t generation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CloseLocked();
  std::error_code ignored;
  std::filesystem::create_directories(job_directory + "/logs", ignored);
  stem_ = absl::StrCat(job_directory, "/logs/rank-", rank);
  generation_ = generation;
  OpenLocked();
}

void JobLog::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  CloseLocked();
}

void JobLog::CloseLocked() {
  if (file_ >= 0) {
    close(std::exchange(file_, -1));
  }
}

void JobLog::OpenLocked() {
  file_ = open(absl::StrCat(stem_, ".log").c_str(),
               O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  bytes_ = file_ < 0 ? 0 : std::max<int64_t>(0, lseek(file_, 0, SEEK_END));
}

void JobLog::RotateLocked() {
  CloseLocked();
  std::rename(absl::StrCat(stem_, ".1.log").c_str(), absl::StrCat(stem_, ".2.log").c_str());
  std::rename(absl::StrCat(stem_, ".log").c_str(), absl::StrCat(stem_, ".1.log").c_str());
  OpenLocked();
}

void JobLog::sink_it_(const spdlog::details::log_msg& message) {
  if (file_ < 0) {
    return;
  }
  std::string text(message.payload.data(), message.payload.size());
  std::replace(text.begin(), text.end(), '\n', ' ');
  const std::string line = absl::StrFormat(
      "%s %c %s g%d %s\n",
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(message.time), absl::UTCTimeZone()),
      LevelLetter(message.level), worker_, generation_, text);
  if (bytes_ + static_cast<int64_t>(line.size()) > rotate_bytes_ && bytes_ > 0) {
    RotateLocked();
  }
  if (file_ >= 0 && write(file_, line.data(), line.size()) > 0) {
    bytes_ += static_cast<int64_t>(line.size());
  }
}

}  // namespace ringmaster::worker
