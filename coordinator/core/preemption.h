#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core/state.h"

// Running jobs are stopped, as for a pause, so that a waiting one of a higher priority gets their
// workers. They go back to the queue, and on from the checkpoint they stopped with.
namespace ringmaster::coordinator {

// Why a job waits in the queue: enough workers are there, but not idle.
constexpr char kWorkersBusy[] = "WORKERS_BUSY";

// Of the workers of a kind, those of one job.
struct Holding {
  Job* job = nullptr;
  std::vector<Worker*> workers;
};

// Busy workers of a kind, by what becomes of them.
struct Holdings {
  // Those that come free, by the uid of the job that they are for, or none, which is first.
  std::map<std::pair<std::string, QueueKey>, Holding> freeing;
  // Those of jobs that may be stopped for a higher one, and when there are more of them.
  std::map<QueueKey, Holding> running;
  absl::Time next = absl::InfiniteFuture();
  // When the first of those that come free has taken too long.
  absl::Time overdue = absl::InfiniteFuture();
};

// Workers that are alike, and would do for a job.
struct Kind {
  std::string name;
  std::vector<Worker*> idle;
  // Members of rings, also where their stream is broken, and idle ones whose stream is.
  std::vector<Worker*> busy;

  // Of Preemption: `busy` as it was found to be after so many stops.
  std::optional<Holdings> holdings;
  size_t stops = 0;
};

// One run over the jobs that wait. What a job takes of a kind costs a look at what it takes, not at
// all that is there, as long as the same Kind is passed for jobs that ask for the same.
class Preemption {
 public:
  explicit Preemption(State& state) : state_(state) {}

  // `job`, of the queue or a recovery, waits for `workers` of one of these kinds, of which there
  // are enough, most of the first. It counts on those that come free anyway, and stops what has to
  // be stopped for the others: jobs of strictly lower priorities, the lowest and then the youngest
  // first, and no more than it takes; of the kind where that is least. When all that may be stopped
  // is not enough, nothing is; nor before workers had time to come back, after a start or after the
  // ring of `job` broke. Returns the idle workers to keep for it. Called in the order of the queue,
  // recoveries among the others.
  std::vector<Worker*> MakeRoom(const Job& job, int workers, std::span<Kind> kinds);

  // Whether MakeQuota may help the job: for none of its queue before it did it look in vain, which
  // would get what it makes room for.
  bool MayMakeQuota(const Job& job) const;
  // The same for one of the queue that waits for `workers` and of which only `left` are within its
  // queue's quota (fewer than 0: so many are held beyond it): it stops jobs of that queue alone. It
  // keeps nothing: of the `idle` ones, which are counted by kind, others may take any. REQUIRES:
  // MayMakeQuota.
  void MakeQuota(const Job& job, int workers, int left, const std::map<std::string, int>& idle,
                 std::span<Kind> kinds);

 private:
  // Sorts what is busy, or follows what was stopped since.
  void Refresh(Kind& kind) const;
  // Unless they have to wait.
  void Stop(const Job& job, const std::vector<Holding>& victims);

  State& state_;
  std::vector<const Job*> stopped_;
};

// The job that the workers of `job` are for when it has stopped; null when there is none, as it
// does not wait any more, has no higher priority, or waits for the quota of another queue.
const Job* PreemptorOf(const State& state, const Job& job);

// Whether the ring of an idle worker was stopped for a job that still waits: for another one than
// `job`; for one of a higher priority.
bool IsFreedForOther(const State& state, const Worker& worker, const Job& job);
bool IsFreedForHigher(const State& state, const Worker& worker, const Job& job);

// Ends the words of PreemptionOf.
constexpr char kTakesItsPlace[] = "takes its place";
// For whom `job` is to stop, in words; empty when for nobody.
std::string PreemptionOf(const State& state, const Job& job);

}  // namespace ringmaster::coordinator
