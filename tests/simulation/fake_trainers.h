#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/invariants.h"
#include "tests/simulation/scheduler.h"
#include "worker/session/session_core.h"

namespace ringmaster::simulation {

// A worker process: the production session core, and in place of threads, transport and model what
// a simulation needs of them.
struct Process {
  std::string name;
  std::string incarnation;
  std::string supervisor;
  std::unique_ptr<worker::SessionCore> core;
  bool alive = true;
  // SIGSTOP: until then everything that arrives waits here.
  absl::Time stopped_until = absl::InfinitePast();
  std::deque<std::function<void()>> deferred;
  // 0: none.
  uint64_t stream = 0;
  absl::Time timer = absl::InfiniteFuture();

  // The trainer.
  enum class Work { kNone, kOpened, kConnecting, kReady, kRunning, kDone };
  Work work = Work::kNone;
  v1::FormRing form;
  v1::RestorePlan plan;
  std::string held_uid;
  v1::HeldState held;
  // A step that was agreed and is being written to the state.
  bool applying = false;
  // This process throws in its next step.
  bool throws = false;
  // What this process has not, until it gets it: the job's mount, memory, the files that others
  // have. It never loses what it had.
  enum class Lack { kNothing, kMount, kMemory, kFiles };
  Lack lack = Lack::kNothing;
};

// All trainers and their shared file system. A step is agreed when every rank of a generation runs
// and none is stopped; a rank that leaves breaks the exchange of the others after a moment. State
// is a step number with a digest that is a function of it, so that a wrong restore is seen.
class FakeTrainers {
 public:
  using Deliver = std::function<void(Process&, const worker::Event&)>;

  // `rows` is the coordinator's store.
  FakeTrainers(Scheduler* scheduler, Invariants* invariants, const Invariants::Rows* rows,
               Deliver deliver)
      : scheduler_(*scheduler),
        invariants_(*invariants),
        rows_(*rows),
        deliver_(std::move(deliver)) {}

  // Runs `what` in the process: not when it is dead, later when it is stopped.
  void In(Process& process, std::function<void()> what);

  void Open(Process& process, const v1::FormRing& form);
  void Connect(Process& process, const v1::ConnectRing& connect);
  void Run(Process& process);
  void Abandon(Process& process);
  void StopAfterStep(Process& process);
  void FinishAfterStep(Process& process);
  void Drop(Process& process, const std::string& uid);
  void Delete(Process& process, const v1::DeleteFiles& files);
  // The process has ended: its peers will notice.
  void Lost(Process& process);

  // The newest step that the ranks of a ring agreed on.
  int64_t AgreedStep(const std::string& uid, int64_t generation) const {
    const auto ring = rings_.find({uid, generation});
    return ring == rings_.end() ? 0 : ring->second.step;
  }
  bool FileExists(const std::string& path) const { return files_.count(path) > 0; }
  // Probability that writing a shard, or aborting in time, fails.
  void SetFaults(double shard, double abort) {
    shard_fault_ = shard;
    abort_fault_ = abort;
  }
  // Until then most attempts to read a checkpoint fail.
  void SetUnreadable(absl::Time until) { unreadable_until_ = until; }
  int64_t steps_agreed() const { return steps_agreed_; }

 private:
  using Key = std::pair<std::string, int64_t>;
  struct Ring {
    std::vector<Process*> ranks;
    int64_t step = 0;
    bool stop_requested = false;
    bool finish_requested = false;
    // The step in whose vote all heard of that.
    int64_t last_step = 0;
    bool voting = false;
    absl::Time blocked_since = absl::InfiniteFuture();
  };

  static Key KeyOf(const Process& p) {
    return {p.form.ring().training_job_uid(), p.form.ring().generation()};
  }
  static v1::HeldState Held(const std::string& uid, int64_t step);
  Ring& RingOf(const Process& p) { return rings_[KeyOf(p)]; }
  bool Takes(const Process& p, const Key& key, Process::Work work) const {
    return p.alive && p.work == work && KeyOf(p) == key;
  }
  bool AllAt(const Ring& ring, Process::Work work) const;

  // Whether this is the job's stored generation.
  bool IsCurrent(const Process& process) const;
  void Restore(Process& process, const Key& key);
  // False when the ranks' files differ: each tells of those that have others.
  bool HaveSameFiles(const Key& key);
  void PlanVote(const Key& key);
  void Vote(const Key& key);
  void Apply(Process& process, const Key& key, int64_t step);
  void AfterStep(Process& process, const Key& key, int64_t step);
  void WriteShard(Process& process, const Key& key, int64_t step, bool last);
  // The other ranks' exchange fails.
  void Break(const Key& key);
  void FailWork(Process& process, const Key& key, const v1::Fault& fault);
  void EndWork(Process& process);

  Scheduler& scheduler_;
  Invariants& invariants_;
  const Invariants::Rows& rows_;
  Deliver deliver_;
  std::map<Key, Ring> rings_;
  std::set<std::string> files_;
  double shard_fault_ = 0;
  double abort_fault_ = 0;
  absl::Time unreadable_until_ = absl::InfinitePast();
  int64_t steps_agreed_ = 0;
};

}  // namespace ringmaster::simulation
