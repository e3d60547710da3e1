#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"
#include "proto/rpc_status.h"
#include "tests/testing/held_state.h"
#include "tests/testing/training_job.h"

namespace ringmaster::coordinator {

// Feeds a core by hand. Keeps the rows as a store would, and the directives of each stream until
// they are looked at.
class CoreDriver {
 public:
  explicit CoreDriver(CoreOptions options = Options()) : options_(std::move(options)) { Start(); }

  static CoreOptions Options();

  // A new life with what is stored; every stream is gone.
  void Start();
  // The same, and of job-a's members those of `ranks` attach again: in their ring as it was, in
  // `phase`, holding `held`.
  void Restart(v1::Phase phase, const v1::HeldState& held = {},
               const std::vector<int>& ranks = {0, 1});
  StoredState Stored() const;

  Output Do(const Event& event) { return Take(core_->Handle(now_, event)); }
  void Tick() { Take(core_->Tick(now_)); }
  // Lets time pass, time-outs on the way included; workers with streams keep their leases.
  void Advance(absl::Duration by, bool heartbeats = true);

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const Request& request,
                                std::optional<absl::StatusOr<ManifestFile>> manifest = {}) {
    Output output = Do(ApiRequest{++calls_, request, std::move(manifest)});
    EXPECT_EQ(output.replies.size(), 1);
    if (!output.replies[0].response.ok()) return output.replies[0].response.status();
    return std::get<Response>(*output.replies[0].response);
  }

  static v1::TrainingJobSpec Spec(int ring = 2, int64_t steps = 10) {
    return SmallSpec(ring, steps);
  }
  static v1::CreateTrainingJobRequest CreateRequest(const std::string& id, int ring = 2) {
    return SmallRequest(id, ring);
  }
  std::string Create(const std::string& id, int ring = 2);
  const v1::TrainingJob& Job(const std::string& id);
  std::string StateOf(const std::string& id);

  static std::string Incarnation(char c) { return std::string(32, c); }
  static v1::Hardware Cpu(const std::string& host = "h0");

  // Attaches `worker` as process `incarnation`; the ring, if any, as it was before.
  void Hello(const std::string& worker, char incarnation, v1::Phase phase = v1::PHASE_IDLE,
             const v1::RingRef& ring = {}, const v1::HeldState& held = {});
  void Hello(const std::string& worker, char incarnation, const v1::Hardware& hardware,
             v1::Phase phase = v1::PHASE_IDLE, const v1::RingRef& ring = {},
             const v1::HeldState& held = {});
  // Process `incarnation` asks for `worker` and is turned away, in words that contain `why`; its
  // stream ends.
  void ExpectTaken(const std::string& worker, char incarnation, const std::string& why);
  // Of the processes that attach from now on.
  void set_version(const std::string& version) { version_ = version; }
  void set_supervisor(const std::string& supervisor) { supervisor_ = supervisor; }
  void Report(const std::string& worker, v1::WorkerReport report);
  void Heartbeat(const std::string& worker);
  void Break(const std::string& worker);
  void Exit(const std::string& worker, int signal, absl::Duration age = absl::Milliseconds(30));

  v1::RingRef Ring(const std::string& id, int rank);
  static v1::HeldState Held(int64_t step, uint64_t digest = 7, bool clean = true) {
    return HeldAt(step, digest, clean);
  }
  // By rank of the current generation: the worker's short name.
  std::string WorkerAt(const std::string& id, int rank);

  void Join(const std::string& id, int rank, const v1::HeldState& held = {});
  void Ready(const std::string& id, int rank, const v1::HeldState& held = Held(0));
  void Aborted(const std::string& id, int rank, const v1::HeldState& held = {});
  void Step(const std::string& id, int64_t step);
  std::string ShardPath(const std::string& id, int64_t step, int rank);
  void Shard(const std::string& id, int rank, int64_t step, const std::string& error = "");
  // Every rank's shard.
  void Checkpoint(const std::string& id, int64_t step);
  // After the job's last step; after an earlier one of a job that pauses.
  void Finish(const std::string& id, int rank, const std::string& error = "");
  void FinishAt(const std::string& id, int rank, int64_t step, const std::string& error = "");
  // Every rank does the step, writes it and finishes; an error is the last one's.
  void FinishRing(const std::string& id, int64_t step, const std::string& error = "");
  void Fail(const std::string& id, int rank, v1::Fault::Kind kind, bool deterministic = false,
            const std::vector<int>& accused = {});

  // From FormRing to StartSteps, every rank holding `held` before.
  void Form(const std::string& id, const v1::HeldState& held = {});
  // job-a of two workers, a and b, whose ring is forming; `edit` changes the job first.
  using Edit = std::function<void(v1::TrainingJobSpec&)>;
  void FormingPair(const Edit& edit = [](auto&) {});
  // The same, and it steps.
  void RunningPair(const Edit& edit = [](auto&) {});
  // Lets job-a's pause before the next attempt end. Returns how long it was.
  absl::Duration AwaitRetry();

  // The words of the directives that `worker`'s stream got since the last look: "Welcome FormRing".
  // HeartbeatAcks are left out.
  std::string Heard(const std::string& worker);
  // The newest directive of a kind among those heard.
  const v1::Directive& Last(const std::string& worker, v1::Directive::DirectiveCase kind);

  coordinator::Core& Core() { return *core_; }
  void Sleep(absl::Duration by) { now_ += by; }
  absl::Time now() const { return now_; }
  uint64_t stream(const std::string& worker) { return streams_.at(worker); }
  const std::map<std::pair<int, std::string>, std::string>& rows() const { return rows_; }
  const Output& last() const { return output_; }

 private:
  Output Take(Output output);

  CoreOptions options_;
  std::unique_ptr<coordinator::Core> core_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  int64_t epoch_ = 0;
  uint64_t calls_ = 0;
  uint64_t stream_ = 0;
  int64_t heartbeats_ = 0;
  std::map<std::pair<int, std::string>, std::string> rows_;
  std::map<std::string, uint64_t> streams_;
  std::map<std::string, std::string> incarnations_;
  std::string version_ = "1.0.0 (c0ffee)";
  std::string supervisor_;
  // Processes that have said something.
  std::set<std::string> began_;
  std::map<uint64_t, std::vector<v1::Directive>> directives_;
  std::map<std::string, std::map<int, v1::Directive>> last_;
  Output output_;
};

}  // namespace ringmaster::coordinator
