#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "spdlog/sinks/base_sink.h"
#include "worker/driver/task_thread.h"

namespace ringmaster::worker {

// logs/rank-{r}.log of the ring this worker is in (docs/files.md): a sink beside the process's own,
// which writes only between Open and Close. The file system may hang, so that only a thread of its
// own touches the files; whoever logs, the control thread included, never waits for it. Lines that
// find too many bytes waiting are dropped, and a line in their place tells how many. A disk that
// does not take a line loses the line, nothing else. Thread-safe.
class JobLog : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // `worker` is "workers/{id}".
  JobLog(std::string worker, int64_t rotate_bytes = int64_t{16} << 20,
         int64_t waiting_bytes_max = int64_t{1} << 20)
      : worker_(std::move(worker)),
        rotate_bytes_(rotate_bytes),
        waiting_bytes_max_(waiting_bytes_max) {}
  // Waits until everything is written.
  ~JobLog() override { Close(); }

  // Follows the rank of the newest generation; closes what was open.
  void Open(const std::string& job_directory, int rank, int64_t generation);
  void Close();
  // Waits until the lines so far are written, at most for `patience`; false when it passed.
  bool Drain(absl::Duration patience);

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  // Nothing: most lines are followed by a flush.
  void flush_() override {}

 private:
  std::string Line(absl::Time time, char level, const std::string& text) const;
  // Those below are of the thread.
  void CloseFile();
  void OpenFile();
  void Rotate();
  void Write(const std::string& line);

  const std::string worker_;
  const int64_t rotate_bytes_;
  const int64_t waiting_bytes_max_;
  // Guarded by base_sink's mutex_.
  bool open_ = false;
  int64_t generation_ = 0;
  int64_t waiting_bytes_ = 0;
  int64_t dropped_ = 0;
  // Used by the thread only.
  std::string stem_;
  int file_ = -1;
  int64_t bytes_ = 0;
  // Last: its tasks use everything above.
  TaskThread thread_;
};

}  // namespace ringmaster::worker
