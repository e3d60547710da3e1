#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "ringmaster/v1/job_service.pb.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::worker {

// The worker's Prometheus metrics; docs/metrics.md lists them, made from the same table. Training
// series have the labels training_job and rank; they are there only while a ring runs and while the
// coordinator counts this worker as alive, so that no old value looks like a current one.
// Thread-safe.
class WorkerMetrics {
 public:
  WorkerMetrics();
  ~WorkerMetrics();
  WorkerMetrics(const WorkerMetrics&) = delete;
  WorkerMetrics& operator=(const WorkerMetrics&) = delete;

  void EnterRing(const v1::RingRef& ring);
  void LeaveRing();
  void SetPublishing(bool publishing);

  // Attention payload of a step: sent by this rank, by the busiest one, and by it as planned.
  struct StepBytes {
    int64_t sent = 0;
    int64_t busiest = 0;
    int64_t planned = 0;
  };
  void OnStep(const v1::StepRecord& record, const StepBytes& bytes);
  void OnRestore(absl::Duration duration);
  void OnShard(const v1::ShardWritten& report, absl::Duration duration);
  void OnFault(v1::Fault::Kind kind);
  void OnStream(bool attached);

  // On the device: of this process, peaks since it began, and what the device has in all.
  struct DeviceMemory {
    int64_t allocated_bytes = 0;
    int64_t reserved_bytes = 0;
    int64_t peak_allocated_bytes = 0;
    int64_t peak_reserved_bytes = 0;
    int64_t limit_bytes = 0;
  };
  // Where the device's memory is read from, when it has one of its own; nothing while it cannot be
  // read. To be set before other threads use this object.
  void SetDeviceMemory(std::function<std::optional<DeviceMemory>()> read);
  // Reads it, for what is told from now on. The trainer's thread only: the device's allocator can
  // hold its lock for as long as a lost peer's kernel hangs, and whoever ends such a ring, or shows
  // that this process is alive, must not wait for that.
  void SampleDeviceMemory();
  // Of the device when last sampled, else of the process: what the coordinator is told with each
  // heartbeat. Never waits for the device, nor does Text.
  int64_t MemoryUsedBytes() const;
  // Text format 0.0.4.
  std::string Text() const;
  // The table of all metrics as Markdown.
  static std::string Markdown();

 private:
  struct Implementation;
  const std::unique_ptr<Implementation> implementation_;
};

}  // namespace ringmaster::worker
