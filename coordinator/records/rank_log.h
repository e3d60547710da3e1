#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/records/file_reader.h"
#include "ringmaster/v1/job_service.pb.h"

namespace ringmaster::coordinator {

// Reads one rank's log while it may grow and be rotated (docs/files.md), line by line from the
// oldest part on. Blocks on the disk. Thread-compatible; movable.
class RankLog {
 public:
  // `tail_lines` > 0: begins that many complete lines before the end.
  RankLog(std::string logs_directory, int rank, int tail_lines);

  // The next complete line; null when there is none for now. Valid until Pop().
  const v1::LogLine* Peek();
  // When the line of Peek() was written, as text that orders like time; a line without a time has
  // its predecessor's.
  const std::string& time() const { return time_; }
  v1::LogLine Pop();

 private:
  // rank-{r}.log, rank-{r}.1.log and so on: older with each number.
  std::string Path(int age) const;
  int OldestAge() const;
  void SkipToTail(int lines);
  // More lines into `lines_`; false when there are none for now.
  bool Fill();
  // Goes on to the part that followed the open one; false when that is the newest, or is not read
  // to its end.
  bool OpenNext();
  void Describe();

  std::string directory_;
  int rank_;
  FileReader file_;
  int64_t offset_ = 0;
  std::deque<std::string> lines_;
  std::optional<v1::LogLine> next_;
  std::string time_;
};

// Reads the logs of a job's ranks, merged by time as far as it is there already.
class JobLogs {
 public:
  // No `ranks`: all, also those that come later.
  JobLogs(const std::string& job_directory, std::vector<int> ranks, int tail_lines);

  // The next lines, at most `count`, and no more once they have `bytes` together; empty when there
  // is nothing more for now.
  std::vector<v1::LogLine> Next(size_t count, size_t bytes);

 private:
  void FindRanks();

  const std::string logs_directory_;
  const std::vector<int> wanted_;
  const int tail_lines_;
  std::map<int, RankLog> logs_;
};

}  // namespace ringmaster::coordinator
