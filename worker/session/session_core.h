#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "worker/session/heartbeat_lease.h"
#include "worker/session/session_events.h"
#include "worker/session/session_identity.h"
#include "worker/session/session_limits.h"
#include "worker/session/unconfirmed_reports.h"

namespace ringmaster::worker {

// The worker's session as a pure state machine: one event in, actions out; no thread, clock, lock,
// torch or gRPC, so that the simulator runs the same code as the worker. Deterministic: equal
// events at equal times give equal actions. Thread-compatible; lives on the control thread.
//
// Phases (v1::Phase) and their legal transitions:
//   IDLE -- FormRing --> JOINING -- ConnectRing --> CONNECTING -- Restored --> READY
//   READY -- StartSteps --> RUNNING -- AllStepsDone --> FINISHED
//   JOINING | CONNECTING | READY | RUNNING | FINISHED
//     -- AbortRing, ReleaseJob, FormRing of a later generation or another job, SIGTERM, Drain -->
//     ABORTING
//   ABORTING -- RingStopped --> IDLE (-> JOINING at once when a FormRing waited)
//   any of JOINING .. FINISHED -- RingStopped with a fault --> IDLE
//   ABORTING -- abort deadline | any -- Die --> exit kExitRestart; any -- name taken --> kExitUsage
//   any -- SIGTERM, Drain --> (ABORTING, the step's end, or ReleaseJob) --> Goodbye, exit kExitOk
//
// Fencing. Directives of a lower epoch, or of a lower generation of the same job, are not obeyed. A
// lower epoch means that the coordinator's data was lost or is an old copy: this process may never
// serve it, a fresh one may. An idle worker exits with kExitRestart at once; one in a ring when no
// coordinator of its own epoch was heard for `stale_coordinator_patience`. From the moment a
// generation is given up nothing it reports is believed: its StepDone, ShardDone and Restored are
// dropped, so a vote counts only if the generation was not aborted. Without an acknowledged
// heartbeat for the lease's length the worker goes on training but stops publishing. Reports are
// derived from the phase: what a broken stream lost is sent again after the next Welcome.
class SessionCore {
 public:
  // REQUIRES: identity.Validate().ok().
  explicit SessionCore(SessionIdentity identity, SessionLimits limits = {});

  std::vector<Action> Handle(absl::Time now, const Event& event);

  // When TimerTick is due next; InfiniteFuture when nothing waits.
  absl::Time NextTimer() const;

  v1::Phase phase() const { return phase_; }
  // The ring of the current phase; while IDLE the last one, default when none.
  const v1::RingRef& ring() const { return form_.ring(); }
  const v1::HeldState& held() const { return held_; }

 private:
  void OnStreamUp();
  void OnStreamDown(const StreamDown& down);
  void OnTick();
  void OnDirective(const v1::Directive& directive);
  void OnStaleCoordinator(int64_t epoch);
  void OnWelcome(const v1::Welcome& welcome);
  void OnHeartbeatAck(const v1::HeartbeatAck& ack);
  void OnFormRing(const v1::FormRing& form);
  void OnConnectRing(const v1::ConnectRing& connect);
  void OnStartSteps(const v1::StartSteps& start);
  void OnFinishSteps(const v1::FinishSteps& finish);
  void OnAbortRing(const v1::AbortRing& abort);
  void OnReleaseJob(const v1::ReleaseJob& release);
  void OnCheckpointCommitted(const v1::CheckpointCommitted& committed);
  void OnDeleteFiles(const v1::DeleteFiles& files);
  void OnTransportOpened(const TransportOpened& opened);
  void OnRestored(const Restored& restored);
  void OnStepDone(const StepDone& done);
  void OnShardDone(const ShardDone& done);
  void OnAllStepsDone(const AllStepsDone& done);
  void OnRingStopped(const RingStopped& stopped);
  void OnStop(const std::string& reason);

  void RefuseUnknownRing(const v1::RingRef& unknown, const char* directive);
  void BeginJoin(const v1::FormRing& form);
  void BeginAbort(const std::string& reason);
  void FinishAbort();
  void Fail(v1::Fault fault);
  void ForgetJob();
  void Leave(const std::string& reason);
  void Exit(int code, const std::string& reason);
  void SetPublishingTo(bool publishing);

  bool HoldsJob(const std::string& uid) const;
  bool IsCurrent(const v1::RingRef& ring) const;
  bool IsActive() const { return phase_ >= v1::PHASE_JOINING && phase_ <= v1::PHASE_FINISHED; }

  v1::WorkerReport* NewReport();
  void SendHello();
  void SendHeartbeat();
  void SendSteps();
  void SendShard(const v1::ShardWritten& shard);
  void TellFault();
  void SendPhaseReports();

  const SessionIdentity identity_;
  const SessionLimits limits_;

  // Valid inside Handle only.
  absl::Time now_;
  std::vector<Action> actions_;

  int64_t epoch_ = 0;
  // Set while only a coordinator of a lower epoch is heard; while another process has the name.
  absl::Time stale_deadline_ = absl::InfiniteFuture();
  absl::Time refused_since_ = absl::InfiniteFuture();
  // A stream is open and Welcome came on it; only then reports go out.
  bool attached_ = false;
  HeartbeatLease lease_;
  bool publishing_ = true;

  v1::Phase phase_ = v1::PHASE_IDLE;
  // The last FormRing; empty when no job is held.
  v1::FormRing form_;
  v1::HeldState held_;
  // Set once the transport is open: RingJoin can be answered.
  std::optional<std::string> transport_address_;
  v1::RestorePlan restore_plan_;
  int64_t connect_ms_ = 0;
  int64_t restore_ms_ = 0;
  std::string checkpoint_error_;
  // Of the current ring; told again after a re-attach until the next FormRing.
  std::optional<v1::Fault> fault_;
  bool fault_told_ = false;
  // Set when AbortRing named a generation that was never heard of here: RingAborted answers for it.
  std::optional<v1::RingRef> aborted_as_;
  int64_t abort_ms_ = 0;
  absl::Time abort_started_;
  absl::Time abort_deadline_ = absl::InfiniteFuture();
  // What follows ABORTING.
  std::optional<v1::FormRing> waiting_form_;
  bool release_after_abort_ = false;

  UnconfirmedReports unconfirmed_;
  int64_t exchanged_bytes_ = 0;
  int64_t planned_bytes_ = 0;
  absl::Time next_steps_report_ = absl::InfinitePast();

  bool leaving_ = false;
  bool exited_ = false;
  std::string leave_reason_;
  absl::Time drain_deadline_ = absl::InfiniteFuture();
};

}  // namespace ringmaster::worker
