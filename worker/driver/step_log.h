#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::worker {

// steps.jsonl of one job (docs/files.md), for appending. Thread-compatible; several processes may
// append.
class StepLog {
 public:
  // Creates the file when it is missing, and ends a last line that a killed writer left incomplete.
  static absl::StatusOr<std::unique_ptr<StepLog>> Open(const std::string& job_directory,
                                                       const std::string& training_job_uid);
  ~StepLog();
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;

  // One write: after a kill -9 the line is there whole or not at all. After an error (the disk is
  // full) the line is kept and written before the next one, up to 4 MiB of them;
  // one that the disk took a part of is continued, or written again when somebody else has ended
  // it.
  absl::Status Append(const v1::StepRecord& record);
  // To the disk.
  absl::Status Sync();
  // The record of `step` that counts, if it is among the last lines. Those of other jobs, which had
  // this directory before, do not.
  std::optional<v1::StepRecord> Find(int64_t step) const;

 private:
  StepLog(int file, std::string path, std::string training_job_uid)
      : file_(file), path_(std::move(path)), training_job_uid_(std::move(training_job_uid)) {}

  absl::Status WriteWaiting();

  const int file_;
  const std::string path_;
  const std::string training_job_uid_;
  // Lines that the disk did not take, except for the first `begun_` bytes of the first one.
  std::string waiting_;
  size_t begun_ = 0;
};

// One line of steps.jsonl, without its line feed.
std::string StepRecordLine(const v1::StepRecord& record, const std::string& training_job_uid);

}  // namespace ringmaster::worker
