#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/records/disk_threads.h"
#include "coordinator/services/rotated_file.h"
#include "ringmaster/store/audit.pb.h"

namespace ringmaster::coordinator {

// Files of JSON lines that tell who changed what, and who was refused. Those who may change nothing
// cannot push out what others did: each kind of call has a file of its own, with nine older parts.
//   {prefix}.jsonl          calls that succeeded
//   {prefix}-failed.jsonl   calls that failed, of callers who are known, by tokens that ended too
//   {prefix}-unknown.jsonl  calls of nobody who is known
// A line is with the operating system soon after its call has ended. Thread-safe.
class AuditLog {
 public:
  // Of calls that failed, of each kind; the others are counted.
  static constexpr int kFailuresASecond = 100;
  // Records of a kind that wait for a disk that hangs; further ones are counted.
  static constexpr int kQueuedMax = 10'000;
  static constexpr int64_t kPartBytesMax = 16 << 20;

  // `now` tells the time of records.
  AuditLog(const std::string& prefix, std::function<absl::Time()> now,
           int64_t part_bytes_max = kPartBytesMax);
  ~AuditLog() { Flush(); }
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  // Completes the record, which has no time, outcome and reason, and has it written; never blocks.
  void Write(store::AuditRecord record, const absl::Status& outcome);
  // Waits until what was given to Write() is written.
  void Flush();

 private:
  enum Kind { kSucceeded, kFailed, kUnknown };
  struct Load {
    int queued = 0;
    // Since the second began.
    absl::Time second = absl::InfinitePast();
    int failures = 0;
    // Not written since the last line.
    int64_t omitted = 0;
  };
  // Whether one more may be queued; it is counted as omitted otherwise.
  bool Admit(Kind kind, absl::Time now);
  void WriteLine(Kind kind, store::AuditRecord record);

  const std::function<absl::Time()> now_;

  std::mutex mutex_;
  std::array<Load, 3> loads_ ABSL_GUARDED_BY(mutex_);

  // Of the thread.
  std::array<RotatedFile, 3> files_;
  std::array<bool, 3> failing_ = {};

  // Last: its work uses the others.
  DiskThreads thread_;
};

}  // namespace ringmaster::coordinator
