#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "spdlog/sinks/base_sink.h"

namespace ringmaster::worker {

// logs/rank-{r}.log of the ring this worker is in (docs/files.md): a sink beside the process's own,
// which writes only between Open and Close. A disk that does not take a line loses the line,
// nothing else. Thread-safe.
class JobLog : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // `worker` is "workers/{id}".
  JobLog(std::string worker, int64_t rotate_bytes = int64_t{16} << 20)
      : worker_(std::move(worker)), rotate_bytes_(rotate_bytes) {}
  ~JobLog() override { Close(); }

  // Follows the rank of the newest generation; closes what was open.
  void Open(const std::string& job_directory, int rank, int64_t generation);
  void Close();

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  void flush_() override {}

 private:
  void CloseLocked();
  void OpenLocked();
  void RotateLocked();

  const std::string worker_;
  const int64_t rotate_bytes_;
  // Guarded by base_sink's mutex_.
  std::string stem_;
  int64_t generation_ = 0;
  int file_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace ringmaster::worker
