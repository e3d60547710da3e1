#include "worker/driver/step_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "google/protobuf/util/json_util.h"

namespace ringmaster::worker {
namespace {

// Some hundred lines.
constexpr off_t kTailBytes = 64 << 10;
constexpr size_t kWaitingBytesMax = size_t{4} << 20;

// JSON knows no NaN; the proto3 mapping writes strings.
std::string Number(double value) {
  if (std::isnan(value)) {
    return "\"NaN\"";
  }
  if (std::isinf(value)) {
    return value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  }
  return absl::StrFormat("%.17g", value);
}

bool EndsWithinLine(int file) {
  const off_t size = lseek(file, 0, SEEK_END);
  char last = '\n';
  return size > 0 && pread(file, &last, 1, size - 1) == 1 && last != '\n';
}

// How a line ends that is this job's.
std::string Signature(const std::string& training_job_uid) {
  return absl::StrCat("\"training_job_uid\":\"", training_job_uid, "\"}");
}

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(what, " ", path));
}

}  // namespace

std::string StepRecordLine(const v1::StepRecord& record, const std::string& training_job_uid) {
  std::string line =
      absl::StrCat("{\"step\":", record.step(), ",\"generation\":", record.generation(),
                   ",\"loss\":", Number(record.loss()));
  if (record.has_validation_loss()) {
    absl::StrAppend(&line, ",\"validation_loss\":", Number(record.validation_loss()));
  }
  const absl::Time time =
      absl::FromUnixSeconds(record.time().seconds()) + absl::Nanoseconds(record.time().nanos());
  absl::StrAppend(&line, ",\"grad_norm\":", Number(record.grad_norm()),
                  ",\"learning_rate\":", Number(record.learning_rate()),
                  ",\"tokens\":", record.tokens(),
                  ",\"seconds\":", Number(std::round(record.seconds() * 1e6) / 1e6), ",\"time\":\"",
                  absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", time, absl::UTCTimeZone()), "\",",
                  Signature(training_job_uid));
  return line;
}

absl::StatusOr<std::unique_ptr<StepLog>> StepLog::Open(const std::string& job_directory,
                                                       const std::string& training_job_uid) {
  const std::string path = job_directory + "/steps.jsonl";
  const int file = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (file < 0) {
    return Failed("cannot open", path);
  }
  std::unique_ptr<StepLog> log(new StepLog(file, path, training_job_uid));
  if (EndsWithinLine(file) && write(file, "\n", 1) != 1) {
    return Failed("cannot write", path);
  }
  return log;
}

StepLog::~StepLog() {
  WriteWaiting().IgnoreError();
  close(file_);
}

absl::Status StepLog::Append(const v1::StepRecord& record) {
  if (waiting_.size() < kWaitingBytesMax) {
    waiting_ += StepRecordLine(record, training_job_uid_) + "\n";
  }
  return WriteWaiting();
}

absl::Status StepLog::WriteWaiting() {
  if (begun_ > 0 && !EndsWithinLine(file_)) {
    // Somebody opened the file meanwhile.
    begun_ = 0;
  }
  while (begun_ < waiting_.size()) {
    const ssize_t wrote = write(file_, waiting_.data() + begun_, waiting_.size() - begun_);
    if (wrote < 0 && errno != EINTR) {
      absl::Status failed = Failed("cannot write", path_);
      const size_t whole = begun_ == 0 ? 0 : waiting_.rfind('\n', begun_ - 1) + 1;
      waiting_.erase(0, whole);
      begun_ -= whole;
      return failed;
    }
    begun_ += static_cast<size_t>(std::max<ssize_t>(0, wrote));
  }
  waiting_.clear();
  begun_ = 0;
  return absl::OkStatus();
}

absl::Status StepLog::Sync() {
  return fdatasync(file_) == 0 ? absl::OkStatus() : Failed("cannot sync", path_);
}

std::optional<v1::StepRecord> StepLog::Find(int64_t step) const {
  const off_t size = lseek(file_, 0, SEEK_END);
  if (size <= 0) {
    return std::nullopt;
  }
  const off_t begin = std::max<off_t>(0, size - kTailBytes);
  std::string tail(static_cast<size_t>(size - begin), '\0');
  const ssize_t got = pread(file_, tail.data(), tail.size(), begin);
  tail.resize(static_cast<size_t>(std::max<ssize_t>(0, got)));
  std::optional<v1::StepRecord> found;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const std::string signature = Signature(training_job_uid_);
  for (const absl::string_view line : absl::StrSplit(tail, '\n', absl::SkipEmpty())) {
    if (!absl::EndsWith(line, signature)) {
      continue;
    }
    v1::StepRecord record;
    const auto parsed = google::protobuf::util::JsonStringToMessage(
        google::protobuf::StringPiece(line.data(), line.size()), &record, options);
    if (parsed.ok() && record.step() == step &&
        (!found.has_value() || record.generation() >= found->generation())) {
      found = std::move(record);
    }
  }
  return found;
}

}  // namespace ringmaster::worker
