#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/records/disk_threads.h"
#include "ringmaster/store/audit.pb.h"

namespace ringmaster::coordinator {

// A file of JSON lines that tells who changed what, and who was refused. At 16 MiB it becomes
// "{path}.1", that one "{path}.2" and so on; nine older parts are kept, and a line is with the
// operating system soon after its call has ended. Thread-safe.
class AuditLog {
 public:
  static constexpr int kRefusalsASecond = 100;
  static constexpr int64_t kFileBytesMax = 16 << 20;

  // `now` tells the time of records.
  AuditLog(std::string path, std::function<absl::Time()> now,
           int64_t file_bytes_max = kFileBytesMax);
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  // Completes the record, which has no time, outcome and reason, and has it written; never blocks.
  // Callers without rights cannot fill the file: of their refusals, kRefusalsASecond are written
  // and the rest are counted.
  void Write(store::AuditRecord record, const absl::Status& outcome);
  // Waits until what was given to Write() is written.
  void Flush();

 private:
  bool TooManyRefusals(absl::Time now);
  void WriteLine(store::AuditRecord record);
  // All of the line, or nothing.
  absl::Status Append(const std::string& line);
  void Rotate();

  const std::string path_;
  const std::function<absl::Time()> now_;
  const int64_t file_bytes_max_;

  std::mutex mutex_;
  // Refusals since the second began.
  absl::Time second_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int refusals_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t omitted_ ABSL_GUARDED_BY(mutex_) = 0;

  // Of the thread. -1 until the file could be opened.
  int file_ = -1;
  int64_t file_bytes_ = 0;

  // Last: its work uses the others.
  DiskThreads thread_;
};

}  // namespace ringmaster::coordinator
