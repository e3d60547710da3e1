#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "ringmaster/v1/worker_service.pb.h"

// What goes into and comes out of the session core: plain values, no pointers. A `ring` names the
// generation that a result belongs to, so that late results of an abandoned generation are
// recognised.
namespace ringmaster::worker {

// ---- events

// A new stream to the coordinator is open; nothing was sent on it yet.
struct StreamUp {};
// The stream broke. Reports that were sent on it may be lost.
struct StreamDown {
  // Not empty: it was refused, in these words, because another process has this worker's name.
  std::string name_taken;
};
// Time passed; due when now >= SessionCore::NextTimer().
struct TimerTick {};
struct DirectiveArrived {
  v1::Directive directive;
};
// OpenTransport is done. `held` is what the worker already has of this job.
struct TransportOpened {
  v1::RingRef ring;
  std::string address;
  v1::HeldState held;
};
// ConnectAndRestore is done.
struct Restored {
  v1::RingRef ring;
  v1::HeldState held;
  int64_t connect_ms = 0;
  int64_t restore_ms = 0;
};
// All ranks agreed on one more step.
struct StepDone {
  v1::RingRef ring;
  v1::StepRecord record;
  // Optimizer updates the held state now contains.
  int64_t held_step = 0;
  int64_t exchanged_bytes = 0;
  int64_t planned_bytes = 0;
};
struct ShardDone {
  v1::ShardWritten report;
};
// DeletePaths is done; the paths that could not be deleted are left out.
struct PathsDeleted {
  v1::FilesDeleted report;
};
// The last step, or the one that FinishAfterStep made the last, is done, and this rank's shard of
// it was written, or could not be (`checkpoint_error`).
struct AllStepsDone {
  v1::RingRef ring;
  v1::HeldState held;
  std::string checkpoint_error;
};
// Nothing of the generation runs any more: after AbandonRing (with a fault, if this rank's own is
// why the ring was given up), after StopAfterStep, or by itself with a fault. The communicator is
// gone.
struct RingStopped {
  v1::RingRef ring;
  v1::HeldState held;
  bool faulted = false;
  // Set when `faulted`; its ring need not be filled in.
  v1::Fault fault;
};
// SIGTERM or SIGINT.
struct StopRequested {};

using Event =
    std::variant<StreamUp, StreamDown, TimerTick, DirectiveArrived, TransportOpened, Restored,
                 StepDone, ShardDone, PathsDeleted, AllStepsDone, RingStopped, StopRequested>;

// ---- actions, to be done in the order given

// The driver may fill in Heartbeat.memory_used_bytes.
struct SendReport {
  v1::WorkerReport report;
};
// Answered by TransportOpened or RingStopped.
struct OpenTransport {
  v1::FormRing form;
};
// Connect to the peers, build what is missing, restore. Answered by Restored or RingStopped.
struct ConnectAndRestore {
  v1::ConnectRing connect;
};
// Answered by StepDone..., ShardDone... and at last AllStepsDone or RingStopped.
struct RunSteps {
  v1::StartSteps start;
};
// Abort the communicator, stop the trainer, keep the held state. Answered by RingStopped, also when
// nothing ran.
struct AbandonRing {
  v1::RingRef ring;
  std::string reason;
};
// Stop between two steps. Answered by RingStopped.
struct StopAfterStep {
  v1::RingRef ring;
};
// The step under way is the last one. Answered as RunSteps.
struct FinishAfterStep {
  v1::RingRef ring;
};
// Forget model, optimizer and data of this job. Nothing of it runs.
struct DropState {
  std::string training_job_uid;
};
struct WriteManifest {
  std::string job_directory;
  v1::Checkpoint checkpoint;
};
// Only paths inside the job directory may be deleted. Answered by PathsDeleted, if any is gone.
struct DeletePaths {
  std::string job_directory;
  v1::DeleteFiles files;
};
// False while the lease is lost: metrics must not be shown as current.
struct SetPublishing {
  bool publishing = true;
};
// Flush the stream for a moment (Goodbye), then end the process, even if a thread is stuck.
struct ExitProcess {
  int code = 0;
  std::string reason;
};

using Action = std::variant<SendReport, OpenTransport, ConnectAndRestore, RunSteps, AbandonRing,
                            StopAfterStep, FinishAfterStep, DropState, WriteManifest, DeletePaths,
                            SetPublishing, ExitProcess>;

}  // namespace ringmaster::worker
