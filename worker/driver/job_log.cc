#include "worker/driver/job_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <future>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ringmaster::worker {
namespace {

char LevelLetter(spdlog::level::level_enum level) {
  static constexpr char kLetters[] = "TDIWECO";
  return kLetters[std::clamp<int>(level, 0, 6)];
}

}  // namespace

void JobLog::Open(const std::string& job_directory, int rank, int64_t generation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  open_ = true;
  generation_ = generation;
  thread_.Add([this, folder = job_directory + "/logs", rank] {
    CloseFile();
    std::error_code ignored;
    std::filesystem::create_directories(folder, ignored);
    stem_ = absl::StrCat(folder, "/rank-", rank);
    OpenFile();
  });
}

void JobLog::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  open_ = false;
  thread_.Add([this] { CloseFile(); });
}

bool JobLog::Drain(absl::Duration patience) {
  const auto written = std::make_shared<std::promise<void>>();
  const std::future<void> done = written->get_future();
  thread_.Add([written] { written->set_value(); });
  return done.wait_for(absl::ToChronoNanoseconds(patience)) == std::future_status::ready;
}

void JobLog::sink_it_(const spdlog::details::log_msg& message) {
  if (!open_) {
    return;
  }
  const absl::Time time = absl::FromChrono(message.time);
  std::string line = Line(time, LevelLetter(message.level),
                          std::string(message.payload.data(), message.payload.size()));
  const auto bytes = static_cast<int64_t>(line.size());
  if (waiting_bytes_ + bytes <= waiting_bytes_max_) {
    waiting_bytes_ += bytes;
    thread_.Add([this, bytes, line = std::move(line)] {
      Write(line);
      const std::lock_guard<std::mutex> lock(mutex_);
      waiting_bytes_ -= bytes;
    });
  } else if (dropped_++ == 0) {
    thread_.Add([this, time] {
      std::string told;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        told = Line(time, 'W',
                    absl::StrCat("lines missing from here on, for the disk took none: ",
                                 std::exchange(dropped_, 0)));
      }
      Write(told);
    });
  }
}

std::string JobLog::Line(absl::Time time, char level, const std::string& text) const {
  std::string line = absl::StrFormat(
      "%s %c %s g%d %s", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone()), level,
      worker_, generation_, text);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line + "\n";
}

// ---- on the thread

void JobLog::CloseFile() {
  if (file_ >= 0) {
    close(std::exchange(file_, -1));
  }
}

void JobLog::OpenFile() {
  file_ = open(absl::StrCat(stem_, ".log").c_str(),
               O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  bytes_ = file_ < 0 ? 0 : std::max<int64_t>(0, lseek(file_, 0, SEEK_END));
}

void JobLog::Rotate() {
  CloseFile();
  std::rename(absl::StrCat(stem_, ".1.log").c_str(), absl::StrCat(stem_, ".2.log").c_str());
  std::rename(absl::StrCat(stem_, ".log").c_str(), absl::StrCat(stem_, ".1.log").c_str());
  OpenFile();
}

void JobLog::Write(const std::string& line) {
  if (file_ < 0) {
    return;
  }
  if (bytes_ + static_cast<int64_t>(line.size()) > rotate_bytes_ && bytes_ > 0) {
    Rotate();
  }
  if (file_ >= 0 && write(file_, line.data(), line.size()) > 0) {
    bytes_ += static_cast<int64_t>(line.size());
  }
}

}  // namespace ringmaster::worker
