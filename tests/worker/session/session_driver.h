#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/testing/held_state.h"
#include "worker/session/session_core.h"

namespace ringmaster::worker {

// Feeds a session core by hand and writes what comes out as words: "Hello", "OpenTransport",
// "Exit(85)"...
class SessionDriver {
 public:
  static constexpr char kUid[] = "uid-a";

  explicit SessionDriver(int rank = 0) : rank_(rank), core_(Identity()) {}

  static SessionIdentity Identity();

  v1::RingRef Ring(int64_t generation, const std::string& uid = kUid) const;

  static v1::HeldState Held(int64_t step, uint64_t digest = 7, bool clean = true) {
    return HeldAt(step, digest, clean);
  }

  // The words of the actions, separated by blanks.
  std::string Do(const Event& event);
  std::string Direct(const v1::Directive& directive) { return Do(DirectiveArrived{directive}); }

  v1::Directive New() const;
  v1::Directive Welcome() const;
  v1::Directive Ack(int64_t sequence) const;
  v1::Directive Form(int64_t generation, const std::string& uid = kUid) const;
  v1::Directive Connect(int64_t generation, int64_t step = 0, const std::string& uid = kUid) const;
  v1::Directive Start(int64_t generation) const;
  v1::Directive Abort(int64_t generation, const std::string& uid = kUid) const;
  v1::Directive Release(int64_t generation, const std::string& uid = kUid) const;
  v1::Directive Committed(int64_t generation, int64_t step) const;
  v1::Directive FinishSteps(int64_t generation, const std::string& uid = "uid-a") const;
  v1::Directive Delete(int64_t generation) const;

  Event Opened(int64_t generation) const { return TransportOpened{Ring(generation), "addr", {}}; }
  Event RestoredAt(int64_t generation, int64_t step = 0) const;
  Event Step(int64_t generation, int64_t step) const;
  Event Shard(int64_t generation, int64_t step) const;
  Event Finished(int64_t generation, int64_t step = 3) const;
  Event Stopped(int64_t generation, int64_t step = 2) const;
  Event Faulted(int64_t generation) const;

  // Attached and brought, in generation `generation`, to `phase`.
  void Reach(v1::Phase phase, int64_t generation);

  const v1::WorkerReport& Report(size_t index) const;
  void Advance(absl::Duration by) { now_ += by; }
  SessionCore& core() { return core_; }
  const std::vector<Action>& last() const { return last_; }
  absl::Time now() const { return now_; }
  void set_epoch(int64_t epoch) { epoch_ = epoch; }

 private:
  static std::string Word(const Action& action);

  const int rank_;
  int64_t epoch_ = 1;
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(1000);
  SessionCore core_;
  std::vector<Action> last_;
};

}  // namespace ringmaster::worker
