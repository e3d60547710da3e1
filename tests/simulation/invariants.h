#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core/core.h"
#include "ringmaster/store/records.pb.h"
#include "tests/simulation/fair_shares.h"
#include "tests/simulation/held_workers.h"
#include "tests/simulation/preemption.h"
#include "tests/simulation/queue_order.h"
#include "tests/simulation/queues.h"

namespace ringmaster::simulation {

// What must hold whatever happens, checked against every committed transaction and the memory that
// goes with it. Remembers over the coordinator's lives.
class Invariants {
 public:
  using Rows = simulation::Rows;

  // What the simulation knows and the coordinator can only be told.
  struct Truth {
    // On the shared disk.
    std::function<bool(const std::string& path)> file_exists;
    // The newest step that the ranks of a generation agreed on.
    std::function<int64_t(const std::string& uid, int64_t generation)> agreed_step;
  };

  // After a commit of `changes`, which made the store `rows`.
  void CheckCommit(const coordinator::Core& core, const Rows& rows,
                   const std::vector<coordinator::RowChange>& changes, const Truth& truth);
  // Before a directive is sent: what it tells must be stored.
  void CheckTold(const v1::Directive& directive, const Rows& rows);
  // A rank of the job is about to tell of this.
  void Faulted(const std::string& uid, const v1::Fault& fault) { ++faults_[{uid, fault.kind()}]; }
  // After every event.
  void CheckMemory(const coordinator::Core& core, const Rows& rows);
  // A life of the coordinator begins: steps that were known in memory only may be unknown now.
  void NewLife() { steps_.clear(); }

  void Violated(const std::string& what) { violations_.push_back(what); }
  // Of jobs that are stopped for others.
  void ConfigurePreemption(bool on, absl::Duration min_runtime) {
    preemption_.Configure(on, min_runtime);
  }
  int preemptions() const { return preemption_.count(); }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  struct Seen {
    int64_t generation = 0;
    v1::TrainingJobStatus::State state = v1::TrainingJobStatus::QUEUED;
    // Files to delete.
    std::set<std::string> garbage;
    std::set<std::string> workers;
  };
  struct Step {
    int64_t step = 0;
    int64_t lost = 0;
  };

  void CheckJob(const store::JobRecord& record, const Rows& rows, const Truth& truth);
  // The job has left the ring of `generation` because it was to pause, was drained, or had its
  // time.
  void CheckLeft(const store::JobRecord& record, int64_t generation, const Rows& rows,
                 const Truth& truth);
  // Another generation than before has no worker with a cordon but those that were in that one.
  void CheckGranted(const v1::TrainingJob& job, const std::set<std::string>& before,
                    const Rows& rows);
  static std::set<std::string> WorkersOf(const v1::TrainingJob& job);
  void CheckCheckpoint(const store::CheckpointRecord& record, const Rows& rows, const Truth& truth);
  void CheckMembers(const Rows& rows);
  // Why a job fails must be among the reasons that were asked for.
  void CheckFailure(const store::JobRecord& record);
  bool IsAskedFor(const store::JobRecord& record) const;
  // Whether a fault that a worker's lack brought may end the job.
  bool MayEnd(const store::JobRecord& record) const;
  int FaultsOf(const store::JobRecord& record, v1::Fault::Kind kind) const;

  QueueOrder queue_order_;
  HeldWorkers held_workers_;
  FairShares fair_shares_;
  Preemption preemption_;
  std::map<std::string, Seen> seen_;
  // By job's uid, before the commit that is looked at.
  std::map<std::string, int64_t> generations_before_;
  std::map<std::string, Step> steps_;
  // The generation that wrote a checkpoint, by name: what is stored again is only marked.
  std::map<std::string, int64_t> committed_;
  std::map<std::pair<std::string, v1::Fault::Kind>, int> faults_;
  std::vector<std::string> violations_;
};

}  // namespace ringmaster::simulation
