#include "coordinator/services/audit_log.h"

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/times.h"
#include "google/protobuf/util/json_util.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

std::string Json(const store::AuditRecord& record) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(record, &json, options);
  return json;
}

}  // namespace

AuditLog::AuditLog(const std::string& prefix, std::function<absl::Time()> now,
                   int64_t part_bytes_max)
    : now_(std::move(now)),
      files_{RotatedFile(prefix + ".jsonl", part_bytes_max),
             RotatedFile(prefix + "-failed.jsonl", part_bytes_max),
             RotatedFile(prefix + "-unknown.jsonl", part_bytes_max)},
      thread_(1) {}

void AuditLog::Flush() {
  std::promise<void> written;
  thread_.Post([&written] { written.set_value(); });
  written.get_future().wait();
}

void AuditLog::Write(store::AuditRecord record, const absl::Status& outcome) {
  ErrorDetails details = Details(outcome);
  // Whoever is known and was refused is told of in the error.
  if (record.caller().empty()) record.set_caller(details.metadata["caller"]);
  Kind kind = outcome.ok() ? kSucceeded : kFailed;
  if (absl::IsUnauthenticated(outcome) && record.caller().empty()) kind = kUnknown;
  const absl::Time now = now_();
  if (!Admit(kind, now)) return;
  *record.mutable_time() = ToProto(now);
  record.set_outcome(absl::StatusCodeToString(outcome.code()));
  record.set_reason(details.reason);
  thread_.Post(
      [this, kind, record = std::move(record)]() mutable { WriteLine(kind, std::move(record)); });
}

bool AuditLog::Admit(Kind kind, absl::Time now) {
  const std::lock_guard lock(mutex_);
  Load& load = loads_[kind];
  if (now - load.second >= absl::Seconds(1)) {
    load.second = now;
    load.failures = 0;
  }
  if (load.queued >= kQueuedMax || (kind != kSucceeded && load.failures >= kFailuresASecond)) {
    ++load.omitted;
    return false;
  }
  ++load.queued;
  ++load.failures;
  return true;
}

void AuditLog::WriteLine(Kind kind, store::AuditRecord record) {
  {
    const std::lock_guard lock(mutex_);
    record.set_omitted(std::exchange(loads_[kind].omitted, 0));
  }
  const absl::Status status = files_[kind].Append(Json(record) + "\n");
  // Calls go on: the disk is full, and who frees it needs the service. Told once, not for each.
  if (failing_[kind] == status.ok()) {
    failing_[kind] = !status.ok();
    if (status.ok()) {
      SPDLOG_INFO("the audit log is written again");
    } else {
      SPDLOG_ERROR("calls are missing in the audit log: {}", status.ToString());
    }
  }
  const std::lock_guard lock(mutex_);
  --loads_[kind].queued;
  if (!status.ok()) loads_[kind].omitted += record.omitted() + 1;
}

}  // namespace ringmaster::coordinator
