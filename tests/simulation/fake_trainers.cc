#include "tests/simulation/fake_trainers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ringmaster::simulation {

using Lack = Process::Lack;
using Work = Process::Work;

namespace {

v1::Fault FaultOf(v1::Fault::Kind kind, const std::string& message, bool deterministic = false) {
  v1::Fault fault;
  fault.set_kind(kind);
  fault.set_message(message);
  fault.set_deterministic(deterministic);
  return fault;
}

}  // namespace

void FakeTrainers::In(Process& process, std::function<void()> what) {
  if (!process.alive) return;
  if (scheduler_.now() < process.stopped_until) {
    process.deferred.push_back(std::move(what));
  } else {
    what();
  }
}

v1::HeldState FakeTrainers::Held(const std::string& uid, int64_t step) {
  v1::HeldState held;
  held.set_present(true);
  held.set_step(step);
  held.set_clean(true);
  held.set_digest(std::hash<std::string>()(absl::StrCat(uid, "/", step)) | 1);
  return held;
}

bool FakeTrainers::AllAt(const Ring& ring, Work work) const {
  return std::all_of(ring.ranks.begin(), ring.ranks.end(),
                     [&](const Process* p) { return p != nullptr && p->alive && p->work == work; });
}

void FakeTrainers::Open(Process& process, const v1::FormRing& form) {
  process.form = form;
  process.work = Work::kOpened;
  if (process.held_uid != form.ring().training_job_uid()) process.held.Clear();
  process.held_uid = form.ring().training_job_uid();
  const Key key = KeyOf(process);
  Ring& ring = rings_[key];
  ring.ranks.resize(form.ranks_size());
  ring.ranks[form.ring().rank()] = &process;
  scheduler_.After(scheduler_.Ms(1, 30), [this, &process, key] {
    In(process, [this, &process, key] {
      if (!Takes(process, key, Work::kOpened)) return;
      if (process.lack == Lack::kMount) {
        FailWork(process, key, FaultOf(v1::Fault::FORM_ERROR, "misfit: no mount", true));
        return;
      }
      deliver_(process, worker::TransportOpened{process.form.ring(), process.name, process.held});
    });
  });
}

void FakeTrainers::Connect(Process& process, const v1::ConnectRing& connect) {
  const Key key = KeyOf(process);
  process.work = Work::kConnecting;
  process.plan = connect.restore();
  const auto& receivers = process.plan.receiver_ranks();
  const bool receives =
      std::find(receivers.begin(), receivers.end(), process.form.ring().rank()) != receivers.end();
  if (receives || process.plan.source() == v1::RecoveryEpisode::CHECKPOINT) {
    process.held.set_clean(false);
    process.held.set_digest(0);
  }
  Ring& ring = rings_[key];
  ring.step = process.plan.step();
  for (const Process* peer : ring.ranks) {
    // It was there when it joined.
    if (peer == nullptr || !peer->alive || KeyOf(*peer) != key || peer->work == Work::kNone) {
      Break(key);
      return;
    }
  }
  if (AllAt(ring, Work::kConnecting)) {
    for (Process* peer : ring.ranks) {
      scheduler_.After(scheduler_.Ms(5, 300), [this, peer, key] {
        In(*peer, [this, peer, key] { Restore(*peer, key); });
      });
    }
  }
  scheduler_.After(absl::Seconds(30), [this, &process, key] {
    In(process, [this, &process, key] {
      if (Takes(process, key, Work::kConnecting)) {
        FailWork(process, key, FaultOf(v1::Fault::COMMUNICATION_ERROR, "connect: hop deadline"));
      }
    });
  });
}

bool FakeTrainers::IsCurrent(const Process& process) const {
  const v1::RingRef& ring = process.form.ring();
  const auto row = rows_.find({static_cast<int>(coordinator::Table::kJobs), ring.training_job()});
  store::JobRecord record;
  return row != rows_.end() && record.ParseFromString(row->second) &&
         record.job().status().generation() == ring.generation() &&
         record.stage() == store::RING_STAGE_FORMING;
}

void FakeTrainers::Restore(Process& process, const Key& key) {
  if (!Takes(process, key, Work::kConnecting)) return;
  if (process.lack == Lack::kMemory) {
    FailWork(process, key, FaultOf(v1::Fault::OUT_OF_MEMORY_ERROR, "misfit: no memory"));
    return;
  }
  const v1::RestorePlan& plan = process.plan;
  switch (plan.source()) {
    case v1::RecoveryEpisode::OWN:
      break;
    case v1::RecoveryEpisode::PEER: {
      const Process* donor = RingOf(process).ranks[plan.donor_rank()];
      if (!donor->alive || KeyOf(*donor) != key || !donor->held.clean() ||
          donor->held.step() != plan.step()) {
        FailWork(process, key,
                 FaultOf(v1::Fault::COMMUNICATION_ERROR, "restore: the donor is gone"));
        return;
      }
      process.held = donor->held;
      break;
    }
    case v1::RecoveryEpisode::CHECKPOINT:
      if (scheduler_.now() < unreadable_until_ && scheduler_.Chance(0.8)) {
        FailWork(process, key, FaultOf(v1::Fault::CHECKPOINT_ERROR, "restore: it hangs"));
        return;
      }
      for (const v1::CheckpointShard& shard : plan.checkpoint().shards()) {
        if (FileExists(shard.path())) continue;
        // A process that was stopped meanwhile may come late: the files were deleted in good order.
        if (IsCurrent(process)) {
          invariants_.Violated(absl::StrCat("restore: ", shard.path(), " is missing"));
        }
        FailWork(process, key,
                 FaultOf(v1::Fault::CHECKPOINT_ERROR, "restore: a shard is missing", true));
        return;
      }
      process.held = Held(process.held_uid, plan.step());
      break;
    default:
      process.held = Held(process.held_uid, 0);
  }
  process.work = Work::kReady;
  deliver_(process, worker::Restored{process.form.ring(), process.held, 5, 5});
}

void FakeTrainers::Run(Process& process) {
  process.work = Work::kRunning;
  const Key key = KeyOf(process);
  Ring& ring = rings_[key];
  for (const Process* peer : ring.ranks) {
    if (!peer->alive || KeyOf(*peer) != key || peer->work == Work::kNone) {
      Break(key);
      return;
    }
  }
  if (!AllAt(ring, Work::kRunning)) return;
  for (const Process* peer : ring.ranks) {
    const v1::HeldState& mine = ring.ranks.front()->held;
    if (!peer->held.clean() || peer->held.step() != ring.step ||
        peer->held.digest() != mine.digest()) {
      invariants_.Violated(
          absl::StrFormat("%s generation %d started with different states", key.first, key.second));
    }
  }
  if (ring.step >= process.form.spec().steps()) {
    for (Process* peer : ring.ranks) WriteShard(*peer, key, ring.step, true);
    return;
  }
  if (HaveSameFiles(key)) PlanVote(key);
}

bool FakeTrainers::HaveSameFiles(const Key& key) {
  const std::vector<Process*>& ranks = rings_[key].ranks;
  bool same = true;
  for (Process* one : ranks) {
    v1::Fault fault = FaultOf(v1::Fault::DATA_ERROR, "misfit: other files", true);
    for (const Process* other : ranks) {
      const bool differs = one->lack == Lack::kFiles || other->lack == Lack::kFiles;
      if (other != one && differs) fault.add_accused_ranks(other->form.ring().rank());
    }
    if (fault.accused_ranks().empty()) continue;
    same = false;
    scheduler_.After(scheduler_.Ms(0, 100), [this, one, key, fault] {
      In(*one, [this, one, key, fault] {
        if (Takes(*one, key, Work::kRunning)) FailWork(*one, key, fault);
      });
    });
  }
  return same;
}

void FakeTrainers::PlanVote(const Key& key) {
  Ring& ring = rings_[key];
  if (ring.voting) return;
  ring.voting = true;
  scheduler_.After(scheduler_.Ms(40, 120), [this, key] {
    rings_[key].voting = false;
    Vote(key);
  });
}

void FakeTrainers::Vote(const Key& key) {
  Ring& ring = rings_[key];
  if (!AllAt(ring, Work::kRunning)) return;
  bool stopped = false;
  bool applying = false;
  for (const Process* peer : ring.ranks) {
    stopped = stopped || scheduler_.now() < peer->stopped_until;
    applying = applying || peer->applying;
  }
  if (stopped) {
    ring.blocked_since = std::min(ring.blocked_since, scheduler_.now());
    if (scheduler_.now() - ring.blocked_since > absl::Seconds(30)) {
      Break(key);
    } else {
      PlanVote(key);
    }
    return;
  }
  ring.blocked_since = absl::InfiniteFuture();
  if (applying) return PlanVote(key);
  for (Process* peer : ring.ranks) {
    if (std::exchange(peer->throws, false)) {
      FailWork(*peer, key, FaultOf(v1::Fault::EXCEPTION, "injected"));
      return;
    }
  }
  ++steps_agreed_;
  const int64_t step = ++ring.step;
  if (ring.finish_requested) ring.last_step = step;
  for (Process* peer : ring.ranks) {
    peer->applying = true;
    scheduler_.After(scheduler_.Ms(0, 30), [this, peer, key, step] {
      In(*peer, [this, peer, key, step] { Apply(*peer, key, step); });
    });
  }
}

void FakeTrainers::Apply(Process& process, const Key& key, int64_t step) {
  if (!Takes(process, key, Work::kRunning) || !process.applying) return;
  process.applying = false;
  process.held = Held(process.held_uid, step);
  v1::StepRecord record;
  record.set_step(step);
  record.set_generation(key.second);
  record.set_loss(5.0 / static_cast<double>(step));
  record.set_seconds(0.08);
  deliver_(process,
           worker::StepDone{.ring = process.form.ring(), .record = record, .held_step = step});
  if (Takes(process, key, Work::kRunning)) AfterStep(process, key, step);
}

void FakeTrainers::AfterStep(Process& process, const Key& key, int64_t step) {
  Ring& ring = rings_[key];
  if (ring.stop_requested && step != ring.last_step) {
    EndWork(process);
    deliver_(process, worker::RingStopped{.ring = process.form.ring(), .held = process.held});
    return;
  }
  const bool last = step >= process.form.spec().steps() || step == ring.last_step;
  const int64_t interval = process.form.spec().checkpoint().interval_steps();
  if (last || (interval > 0 && step % interval == 0)) {
    scheduler_.After(scheduler_.Ms(5, 200), [this, &process, key, step, last] {
      In(process, [this, &process, key, step, last] { WriteShard(process, key, step, last); });
    });
  }
  if (!last) PlanVote(key);
}

void FakeTrainers::WriteShard(Process& process, const Key& key, int64_t step, bool last) {
  if (!Takes(process, key, Work::kRunning)) return;
  v1::ShardWritten written;
  *written.mutable_ring() = process.form.ring();
  written.set_step(step);
  if (scheduler_.Chance(shard_fault_)) {
    written.set_error("no space left on device");
  } else {
    v1::CheckpointShard* shard = written.mutable_shard();
    shard->set_path(absl::StrFormat("%s/checkpoints/step-%08d/shard-%05d-g%d-%s",
                                    process.form.directory(), step, process.form.ring().rank(),
                                    key.second, process.incarnation));
    shard->set_bytes(100);
    if (!files_.insert(shard->path()).second) {
      invariants_.Violated(absl::StrCat(shard->path(), " was written twice"));
    }
  }
  const std::string error = written.error();
  deliver_(process, worker::ShardDone{written});
  if (!last || !Takes(process, key, Work::kRunning)) return;
  process.work = Work::kDone;
  deliver_(process, worker::AllStepsDone{process.form.ring(), process.held, error});
}

void FakeTrainers::Break(const Key& key) {
  for (Process* peer : rings_[key].ranks) {
    if (peer == nullptr || KeyOf(*peer) != key) continue;
    scheduler_.After(scheduler_.Ms(5, 150), [this, peer, key] {
      In(*peer, [this, peer, key] {
        if (Takes(*peer, key, Work::kConnecting) || Takes(*peer, key, Work::kRunning)) {
          FailWork(*peer, key, FaultOf(v1::Fault::COMMUNICATION_ERROR, "a peer is gone"));
        }
      });
    });
  }
}

// What the state is when work ends in the middle of an update: not begun, done, or torn.
void FakeTrainers::EndWork(Process& process) {
  process.work = Work::kNone;
  if (!std::exchange(process.applying, false)) return;
  if (scheduler_.Chance(0.4)) {
    process.held = Held(process.held_uid, process.held.step() + 1);
  } else if (scheduler_.Chance(0.5)) {
    process.held.set_clean(false);
    process.held.set_digest(0);
  }
}

void FakeTrainers::FailWork(Process& process, const Key& key, const v1::Fault& fault) {
  EndWork(process);
  Break(key);
  invariants_.Faulted(key.first, fault);
  deliver_(process,
           worker::RingStopped{
               .ring = process.form.ring(), .held = process.held, .faulted = true, .fault = fault});
}

void FakeTrainers::Abandon(Process& process) {
  const Key key = KeyOf(process);
  EndWork(process);
  Break(key);
  // Else the abort hangs, and the session core ends the process.
  if (scheduler_.Chance(abort_fault_)) return;
  scheduler_.After(scheduler_.Ms(1, 200), [this, &process, key] {
    In(process, [this, &process, key] {
      if (process.work != Work::kNone || KeyOf(process) != key) return;
      deliver_(process, worker::RingStopped{.ring = process.form.ring(), .held = process.held});
    });
  });
}

void FakeTrainers::StopAfterStep(Process& process) { RingOf(process).stop_requested = true; }

void FakeTrainers::FinishAfterStep(Process& process) { RingOf(process).finish_requested = true; }

void FakeTrainers::Drop(Process& process, const std::string& uid) {
  if (process.held_uid == uid) process.held.Clear();
}

void FakeTrainers::Delete(Process& process, const v1::DeleteFiles& files) {
  scheduler_.After(scheduler_.Ms(0, 100), [this, &process, files] {
    In(process, [this, &process, files] {
      worker::PathsDeleted deleted;
      *deleted.report.mutable_ring() = files.ring();
      *deleted.report.mutable_paths() = files.paths();
      for (const std::string& path : files.paths()) {
        files_.erase(path);
        for (const auto& [key, value] : rows_) {
          if (key.first != static_cast<int>(coordinator::Table::kCheckpoints)) continue;
          if (value.find(path) != std::string::npos) {
            invariants_.Violated(absl::StrCat(path, " of ", key.second, " was deleted"));
          }
        }
      }
      deliver_(process, deleted);
    });
  });
}

void FakeTrainers::Lost(Process& process) { Break(KeyOf(process)); }

}  // namespace ringmaster::simulation
