#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/temporary_directory.h"
#include "tests/worker/client/fake_coordinator.h"
#include "worker/comm/in_process_exchange.h"
#include "worker/driver/session_loop.h"

namespace ringmaster::worker {

// Whole workers (session core, stream over gRPC, trainer, checkpoint writer) as threads of the
// test, over the in-process transport, and a coordinator that does what the test says. Every wait
// ends after 10 s without a report.
class RingScene {
 public:
  static constexpr char kUid[] = "uid-1";

  explicit RingScene(int64_t steps);
  ~RingScene();

  v1::TrainingJobSpec& spec() { return spec_; }
  // Of the test; gone with it.
  const std::string& folder() const { return folder_; }
  // Of the job.
  std::string directory() const { return folder_ + "/job"; }
  // Of workers started from now on.
  void set_shared_directory(std::string path) { shared_directory_ = std::move(path); }
  SessionLimits& limits() { return limits_; }
  FakeCoordinator& coordinator() { return coordinator_; }

  // Starts (or starts again, as another process) a worker and waits for its Hello.
  void StartWorker(const std::string& name, const std::string& fault = "");
  // As a kill does: its peers see it go.
  void KillWorker(const std::string& name);
  void StopWorker(const std::string& name);
  SessionEnd JoinWorker(const std::string& name);
  // Of that worker. What the process logs goes there only if the test says so.
  std::shared_ptr<JobLog> job_log(const std::string& name);

  // Forms generation `generation` of these workers up to RingReady of all; `checkpoint` is restored
  // when no one holds a state. Returns the plan that was given.
  v1::RestorePlan FormRing(int64_t generation, const std::vector<std::string>& members,
                           const v1::Checkpoint* checkpoint = nullptr);
  void StartSteps(const v1::ExistingCheckpoints* existing = nullptr);
  // Workers "a" and "b" as generation 1, from the first step on.
  void StartPair();
  void Abort();
  void Release();
  void Drain(const std::string& name);
  void Commit(const v1::Checkpoint& checkpoint);
  void Delete(const v1::Checkpoint& checkpoint);

  // Takes reports, answering Hello and Heartbeat, until `done`.
  void PumpUntil(const std::function<bool()>& done, const std::string& what);
  void PumpUntilFinished();

  const std::map<int, v1::RingReady>& ready() const { return ready_; }
  const std::map<int, v1::RingFinished>& finished() const { return finished_; }
  // By rank, of the newest generation that told.
  std::map<int, v1::RingAborted>& aborted() { return aborted_; }
  std::vector<v1::Fault>& faults() { return faults_; }
  std::vector<v1::ShardWritten>& shards() { return shards_; }
  const std::vector<v1::FilesDeleted>& deleted() const { return deleted_; }
  const std::vector<std::string>& goodbyes() const { return goodbyes_; }
  // Step -> what was reported last.
  std::map<int64_t, v1::StepRecord>& records() { return records_; }
  // The shards of one step as the coordinator would store them; a shard may be told more than once.
  v1::Checkpoint CheckpointOf(int64_t step) const;

 private:
  struct Worker;

  v1::Directive New() const;
  v1::RingRef Ring(int rank) const;
  void ToMembers(v1::Directive directive, const std::function<v1::RingRef*(v1::Directive&)>& ring);
  // The highest clean step wins, as in the real coordinator.
  v1::RestorePlan Plan(const v1::Checkpoint* checkpoint);
  Worker* ByIncarnation(const std::string& incarnation);
  void Take(const FakeCoordinator::Heard& heard);

  const TemporaryDirectory temporary_;
  const std::string folder_ = temporary_.path();
  std::string shared_directory_;
  SessionLimits limits_;
  v1::TrainingJobSpec spec_;
  InProcessHub hub_;
  FakeCoordinator coordinator_;
  std::map<std::string, std::unique_ptr<Worker>> workers_;
  int incarnations_ = 0;
  int64_t generation_ = 0;
  std::vector<std::string> members_;

  std::map<int, v1::RingJoin> joins_;
  std::map<int, v1::RingReady> ready_;
  std::map<int, v1::RingAborted> aborted_;
  std::map<int, v1::RingFinished> finished_;
  std::vector<v1::Fault> faults_;
  std::vector<v1::ShardWritten> shards_;
  std::vector<v1::FilesDeleted> deleted_;
  std::vector<std::string> goodbyes_;
  std::map<int64_t, v1::StepRecord> records_;
};

}  // namespace ringmaster::worker
