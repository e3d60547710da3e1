#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "coordinator/records/file_reader.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// Reads a job's steps.jsonl (docs/files.md) while it may grow: every step once, in step order, as
// it was done last. What other jobs left in the file is skipped. A step that is done again after it
// was returned is not returned again. Blocks on the disk. A line of more than 1 MiB is no record:
// it is skipped, and never held whole. Thread-compatible.
class StepLog {
 public:
  StepLog(std::string path, std::string training_job_uid, int64_t start_step)
      : path_(std::move(path)),
        training_job_uid_(std::move(training_job_uid)),
        next_step_(start_step) {}

  // The next records, at most `count`; empty when there is nothing more for now.
  std::vector<v1::StepRecord> Next(size_t count);

 private:
  struct Line {
    int64_t step;
    int64_t generation;
    int64_t offset;
    size_t bytes;
  };

  // Adds the complete lines behind the scanned part to `waiting_`.
  void Scan();
  void Add(const Line& line);
  // Whether a higher generation has done this step, or an earlier one, again.
  bool Void(const Line& line) const;

  const std::string path_;
  const std::string training_job_uid_;
  FileReader file_;
  int64_t scanned_ = 0;
  // The line at `scanned_` has begun before it, and is no record.
  bool skipping_ = false;
  // Lowest step not returned yet.
  int64_t next_step_;
  // Ascending steps, none void.
  std::deque<Line> waiting_;
  // Generation -> its lowest step.
  std::map<int64_t, int64_t> first_steps_;
};

}  // namespace ringmaster::coordinator
