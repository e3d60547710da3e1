#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/fake_store.h"
#include "tests/simulation/fake_trainers.h"
#include "tests/simulation/invariants.h"
#include "tests/simulation/scheduler.h"

namespace ringmaster::simulation {

// A whole deployment in virtual time: the production coordinator core on a fake store, production
// session cores with fake trainers, streams with delays that break, users that retry, and faults:
// killed and stopped workers, hanging aborts, exceptions, workers that lack what others have,
// checkpoints that cannot be read, a coordinator that dies before or after a commit, a full disk.
// Everything follows from the seed.
class Simulation {
 public:
  explicit Simulation(uint64_t seed);

  // Faults for a while, then quiet until every job has ended. Violations of invariants, and jobs
  // that did not end, in words; empty when all is well.
  std::vector<std::string> Run();

  // What happened, for people.
  std::string Summary() const;
  // How many jobs were stopped for others.
  int preemptions() const { return invariants_.preemptions(); }

 private:
  struct Stream {
    Process* process = nullptr;
    bool up = true;
    // Per direction no message overtakes another.
    absl::Time to_coordinator;
    absl::Time to_worker;
  };
  struct Submission {
    v1::CreateTrainingJobRequest request;
    std::string name;
    bool cancel = false;
    bool satisfiable = true;
  };

  // ---- coordinator
  void StartCoordinator();
  void CrashCoordinator();
  void Handle(const coordinator::Event& event);
  void HandleArrived();
  void Take(coordinator::Output output);
  bool Commit(const coordinator::Output& output);
  void Release(coordinator::Output output);
  void PlanTick();

  // ---- workers
  // A supervisor's next child; an empty `supervisor`: the first one of another.
  void StartProcess(const std::string& name, const std::string& supervisor = "");
  void Deliver(Process& process, const worker::Event& event);
  void Act(Process& process, const worker::Action& action);
  void PlanTimer(Process& process);
  void Connect(Process& process);
  void BreakStream(uint64_t id);
  void EndProcess(Process& process, int signal, int exit_code, absl::Duration restart);
  void LoseHost(Process& process);
  void ReportExit(const Process& process, int signal, int exit_code, absl::Time ended, int tries);

  // ---- streams
  void SendToCoordinator(uint64_t id, const v1::WorkerReport& report);
  void SendToWorker(uint64_t id, const v1::Directive& directive);

  // ---- users
  void PlanUsers();
  void Submit(size_t index);
  void Cancel(size_t index);
  // For a while.
  void Pause(size_t index);
  void Resume(size_t index);
  // Another priority.
  void Reprioritise(size_t index);
  // Cordons or drains the worker and takes that back, so many times.
  void Operate(const std::string& worker, int rounds);
  void AwaitDrained(const std::string& worker, int rounds);
  void Uncordon(const std::string& worker, int rounds);
  // Asks until there is an answer, which may be that the job ends. Then calls `done`.
  template <typename Request>
  void Ask(size_t index, std::function<void()> done, Request request = {});
  // The same about a worker, of which the answer may be that there is none.
  template <typename Request>
  void AskOf(const std::string& worker,
             std::function<void(const absl::StatusOr<v1::Worker>&)> done);

  // ---- administrators
  // Some seeds have a second queue.
  void PlanAdministrators();
  void MakeQueue(int32_t max_workers);
  void EditQueue();
  void DeleteQueue();
  void LiftQuotas();
  // Asks until there is an answer, in quiet times only when it `insists`. Then calls `done`, if
  // there is one.
  template <typename Request>
  void Administer(const Request& request, bool insists,
                  std::function<void(const absl::Status&)> done = {});
  // The queue does not take such a job at present.
  bool IsRefusedByQueue(const v1::TrainingJobSpec& spec, const absl::Status& status) const;

  // ---- faults
  void PlanFaults();
  void InjectFault();
  // For a while.
  void MakeMisfit(Process& process);
  Process* AnyProcess();
  bool AllEnded() const;

  Scheduler scheduler_;
  Invariants invariants_;
  FakeStore store_;
  FakeTrainers trainers_;
  uint64_t seed_;

  std::unique_ptr<coordinator::Core> core_;
  // While it commits.
  std::vector<coordinator::Event> arrived_;
  int64_t epoch_ = 0;
  absl::Time tick_planned_ = absl::InfiniteFuture();
  bool faults_ = true;
  // Of a process that starts.
  double misfit_chance_ = 0;
  // The next output is committed, and then the coordinator dies; or dies before the commit.
  bool crash_after_commit_ = false;
  bool crash_before_commit_ = false;

  std::vector<std::unique_ptr<Process>> processes_;
  std::map<std::string, Process*> current_;
  std::map<uint64_t, Stream> streams_;
  uint64_t last_stream_ = 0;
  uint64_t last_call_ = 0;

  std::vector<Submission> submissions_;
  std::map<uint64_t, std::function<void(const coordinator::Reply*)>> calls_;
  // Workers that an operator has not given back yet.
  int operated_ = 0;
  std::map<std::string, int> injected_;
};

}  // namespace ringmaster::simulation
