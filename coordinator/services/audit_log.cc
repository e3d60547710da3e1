#include "coordinator/services/audit_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/times.h"
#include "google/protobuf/util/json_util.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kOlderParts = 9;

std::string Json(const store::AuditRecord& record) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(record, &json, options);
  return json;
}

}  // namespace

AuditLog::AuditLog(std::string path, std::function<absl::Time()> now, int64_t file_bytes_max)
    : path_(std::move(path)), now_(std::move(now)), file_bytes_max_(file_bytes_max), thread_(1) {}

AuditLog::~AuditLog() {
  Flush();
  if (file_ >= 0) close(file_);
}

void AuditLog::Flush() {
  std::promise<void> written;
  thread_.Post([&written] { written.set_value(); });
  written.get_future().wait();
}

void AuditLog::Write(store::AuditRecord record, const absl::Status& outcome) {
  const absl::Time now = now_();
  const bool refused = absl::IsUnauthenticated(outcome) || absl::IsPermissionDenied(outcome);
  if (refused && TooManyRefusals(now)) return;
  *record.mutable_time() = ToProto(now);
  record.set_outcome(absl::StatusCodeToString(outcome.code()));
  ErrorDetails details = Details(outcome);
  record.set_reason(details.reason);
  // Whoever is known and was refused is told of in the error.
  if (record.caller().empty()) record.set_caller(details.metadata["caller"]);
  thread_.Post([this, record = std::move(record)]() mutable { WriteLine(std::move(record)); });
}

bool AuditLog::TooManyRefusals(absl::Time now) {
  const std::lock_guard lock(mutex_);
  if (now - second_ >= absl::Seconds(1)) {
    second_ = now;
    refusals_ = 0;
  }
  if (++refusals_ <= kRefusalsASecond) return false;
  ++omitted_;
  return true;
}

void AuditLog::WriteLine(store::AuditRecord record) {
  {
    const std::lock_guard lock(mutex_);
    record.set_omitted(std::exchange(omitted_, 0));
  }
  const absl::Status status = Append(Json(record) + "\n");
  if (status.ok()) return;
  // Calls go on: the disk is full, and who frees it needs the service.
  SPDLOG_ERROR("{} by {} is not in the audit log: {}", record.method(), record.caller(),
               status.ToString());
  const std::lock_guard lock(mutex_);
  omitted_ += record.omitted() + 1;
}

absl::Status AuditLog::Append(const std::string& line) {
  const auto size = static_cast<int64_t>(line.size());
  if (file_ >= 0 && file_bytes_ + size > file_bytes_max_) Rotate();
  if (file_ < 0) {
    file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct stat status = {};
    if (file_ < 0 || fstat(file_, &status) != 0) return absl::ErrnoToStatus(errno, path_);
    file_bytes_ = status.st_size;
  }
  const ssize_t written = write(file_, line.data(), line.size());
  if (written == size) {
    file_bytes_ += size;
    return absl::OkStatus();
  }
  const int error = written < 0 ? errno : ENOSPC;
  // Half a line would spoil the next one.
  if (written > 0 && ftruncate(file_, file_bytes_) != 0) file_bytes_ += written;
  return absl::ErrnoToStatus(error, path_);
}

void AuditLog::Rotate() {
  close(std::exchange(file_, -1));
  const auto part = [this](int number) { return absl::StrCat(path_, ".", number); };
  for (int i = kOlderParts; i > 1; --i) std::rename(part(i - 1).c_str(), part(i).c_str());
  std::rename(path_.c_str(), part(1).c_str());
}

}  // namespace ringmaster::coordinator
