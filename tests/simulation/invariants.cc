#include "tests/simulation/invariants.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/times.h"
#include "tests/simulation/ceilings.h"
#include "tests/simulation/quota_reasons.h"

namespace ringmaster::simulation {
namespace {

using coordinator::JobState;
using coordinator::Table;

// Several transitions may be committed at once.
bool Reachable(JobState from, JobState to, int depth = 4) {
  if (from == to || coordinator::IsLegal(from, to)) return true;
  if (depth == 0) return false;
  for (int next = 1; next <= v1::TrainingJobStatus::State_MAX; ++next) {
    const auto state = static_cast<JobState>(next);
    if (coordinator::IsLegal(from, state) && Reachable(state, to, depth - 1)) return true;
  }
  return false;
}

bool IsLive(const store::JobRecord& record) {
  return record.stage() == store::RING_STAGE_FORMING || record.stage() == store::RING_STAGE_STARTED;
}

int WorldOf(const store::JobRecord& record) {
  const v1::ParallelSpec& parallel = record.job().spec().parallel();
  return parallel.ring_size() * parallel.replicas();
}

store::JobRecord ParseJob(const std::string& value) {
  store::JobRecord record;
  record.ParseFromString(value);
  return record;
}

// A ring is not stopped while its checkpoint has no room; and a little.
constexpr absl::Duration kLongestFullDisk = absl::Seconds(6);

absl::Duration TimeLeft(const v1::TrainingJob& job) {
  if (!job.spec().has_max_runtime()) return absl::InfiniteDuration();
  return coordinator::FromProto(job.spec().max_runtime()) -
         coordinator::FromProto(job.status().run_duration());
}

}  // namespace

// Every step that its ring had agreed on is in a checkpoint, unless its budget was spent.
void Invariants::CheckLeft(const store::JobRecord& record, int64_t generation, const Rows& rows,
                           const Truth& truth) {
  const v1::TrainingJobStatus& status = record.job().status();
  if (absl::StrContains(status.state_reason(), "episodes_max (3)") ||
      absl::StrContains(status.state_reason(), "could not be written")) {
    return;
  }
  const auto row = rows.find({static_cast<int>(Table::kCheckpoints), status.last_checkpoint()});
  store::CheckpointRecord newest;
  if (row != rows.end()) newest.ParseFromString(row->second);
  const int64_t agreed = truth.agreed_step(record.job().uid(), generation);
  if (newest.checkpoint().generation() != generation || newest.checkpoint().step() != agreed ||
      status.progress().step() != agreed) {
    Violated(absl::StrFormat("%s: stopped after step %d of generation %d with checkpoint '%s'",
                             record.job().name(), agreed, generation, status.last_checkpoint()));
  }
}

std::set<std::string> Invariants::WorkersOf(const v1::TrainingJob& job) {
  std::set<std::string> workers;
  for (const v1::RankAssignment& rank : job.status().ranks()) workers.insert(rank.worker());
  return workers;
}

void Invariants::CheckGranted(const v1::TrainingJob& job, const std::set<std::string>& before,
                              const Rows& rows) {
  for (const v1::RankAssignment& rank : job.status().ranks()) {
    if (rows.count({static_cast<int>(Table::kCordons), rank.worker()}) > 0 &&
        before.count(rank.worker()) == 0) {
      Violated(absl::StrFormat("%s: generation %d is granted on %s, which is cordoned", job.name(),
                               job.status().generation(), rank.worker()));
    }
  }
}

void Invariants::CheckJob(const store::JobRecord& record, const Rows& rows, const Truth& truth) {
  const v1::TrainingJob& job = record.job();
  const std::set<std::string> garbage(record.garbage().begin(), record.garbage().end());
  const auto known = seen_.find(job.uid());
  if (known != seen_.end()) {
    if (job.status().generation() < known->second.generation) {
      Violated(absl::StrFormat("%s: generation fell from %d to %d", job.name(),
                               known->second.generation, job.status().generation()));
    }
    if (!Reachable(known->second.state, job.status().state())) {
      Violated(absl::StrFormat("%s: illegal change of state from %d to %d", job.name(),
                               known->second.state, job.status().state()));
    }
    for (const std::string& path : known->second.garbage) {
      if (garbage.count(path) == 0 && truth.file_exists(path)) {
        Violated(absl::StrFormat("%s: %s was to be deleted, is forgotten and still there",
                                 job.name(), path));
      }
    }
  }
  const bool left = known != seen_.end() && known->second.state == v1::TrainingJobStatus::PAUSING &&
                    (job.status().state() == v1::TrainingJobStatus::PAUSED ||
                     job.status().state() == v1::TrainingJobStatus::QUEUED ||
                     job.status().state() == v1::TrainingJobStatus::STARTING ||
                     job.status().failure_class() == v1::MAX_RUNTIME_REACHED);
  if (left) CheckLeft(record, known->second.generation, rows, truth);
  const Seen before = known == seen_.end() ? Seen{} : known->second;
  if (job.status().generation() > before.generation) CheckGranted(job, before.workers, rows);
  const bool fails = job.status().state() == v1::TrainingJobStatus::FAILED &&
                     (known == seen_.end() || known->second.state != job.status().state());
  if (fails) CheckFailure(record);
  seen_[job.uid()] = {job.status().generation(), job.status().state(), garbage, WorkersOf(job)};
  if (IsLive(record) && job.status().ranks_size() != WorldOf(record)) {
    Violated(absl::StrFormat("%s: a ring of %d members, not %d", job.name(),
                             job.status().ranks_size(), WorldOf(record)));
  }
  if (coordinator::IsTerminal(job.status().state()) && record.stage() != store::RING_STAGE_NONE) {
    Violated(absl::StrCat(job.name(), ": ended with a ring"));
  }
}

void Invariants::CheckCheckpoint(const store::CheckpointRecord& record, const Rows& rows,
                                 const Truth& truth) {
  const v1::Checkpoint& checkpoint = record.checkpoint();
  const std::string job_name = checkpoint.name().substr(0, checkpoint.name().find("/checkpoints/"));
  const auto row = rows.find({static_cast<int>(Table::kJobs), job_name});
  if (row == rows.end()) {
    Violated(absl::StrCat(checkpoint.name(), ": a checkpoint without its job"));
    return;
  }
  const store::JobRecord job = ParseJob(row->second);
  int64_t& committed = committed_[absl::StrCat(record.training_job_uid(), " ", checkpoint.name())];
  const bool fresh = committed != checkpoint.generation();
  committed = checkpoint.generation();
  // What waited for room in the store may be committed together with what follows from it: the job
  // is paused, resumed, and has another ring.
  const auto before = generations_before_.find(record.training_job_uid());
  if (fresh && checkpoint.generation() != job.job().status().generation() &&
      (before == generations_before_.end() || checkpoint.generation() != before->second)) {
    Violated(absl::StrFormat("%s: committed for generation %d, the current one is %d",
                             checkpoint.name(), checkpoint.generation(),
                             job.job().status().generation()));
  }
  if (fresh && checkpoint.shards_size() != WorldOf(job)) {
    Violated(absl::StrFormat("%s: %d shards of %d ranks", checkpoint.name(),
                             checkpoint.shards_size(), WorldOf(job)));
  }
  const std::string mark = absl::StrFormat("-g%d-", checkpoint.generation());
  for (const v1::CheckpointShard& shard : checkpoint.shards()) {
    if (!truth.file_exists(shard.path())) {
      Violated(absl::StrCat(checkpoint.name(), ": names the missing file ", shard.path()));
    }
    if (shard.path().find(mark) == std::string::npos) {
      Violated(
          absl::StrCat(checkpoint.name(), ": holds a shard of another generation, ", shard.path()));
    }
  }
}

void Invariants::CheckMembers(const Rows& rows) {
  std::map<std::string, std::string> member_of;
  for (const auto& [key, value] : rows) {
    if (key.first != static_cast<int>(Table::kJobs)) continue;
    const store::JobRecord record = ParseJob(value);
    if (!IsLive(record)) continue;
    for (const v1::RankAssignment& rank : record.job().status().ranks()) {
      const auto [other, fresh] = member_of.emplace(rank.incarnation(), key.second);
      if (!fresh) {
        Violated(absl::StrFormat("%s is a member of %s and of %s", rank.worker(), other->second,
                                 key.second));
      }
    }
  }
}

void Invariants::CheckCommit(const coordinator::Core& core, const Rows& rows,
                             const std::vector<coordinator::RowChange>& changes,
                             const Truth& truth) {
  bool jobs_changed = false;
  generations_before_.clear();
  for (const auto& [uid, seen] : seen_) generations_before_[uid] = seen.generation;
  for (const coordinator::RowChange& change : changes) {
    if (change.table == Table::kJobs) jobs_changed = true;
    if (!change.value.has_value()) continue;
    if (change.table == Table::kJobs) CheckJob(ParseJob(*change.value), rows, truth);
    if (change.table == Table::kCheckpoints) {
      store::CheckpointRecord record;
      record.ParseFromString(*change.value);
      CheckCheckpoint(record, rows, truth);
    }
  }
  if (jobs_changed) CheckMembers(rows);
  // Memory and store say the same of every job, but for progress and the reason to wait.
  for (const coordinator::RowChange& change : changes) {
    if (change.table != Table::kJobs || !change.value.has_value()) continue;
    const v1::TrainingJob* job = core.FindJob(change.key);
    const v1::TrainingJob stored = ParseJob(*change.value).job();
    if (job == nullptr || job->status().state() != stored.status().state() ||
        job->status().generation() != stored.status().generation() ||
        job->etag() != stored.etag()) {
      Violated(absl::StrCat(change.key, ": memory and store differ"));
    }
  }
}

void Invariants::CheckTold(const v1::Directive& directive, const Rows& rows) {
  const bool forms = directive.has_form_ring();
  if (!forms && !directive.has_start_steps()) return;
  const v1::RingRef& ring = forms ? directive.form_ring().ring() : directive.start_steps().ring();
  const auto row = rows.find({static_cast<int>(Table::kJobs), ring.training_job()});
  const store::JobRecord record = row == rows.end() ? store::JobRecord() : ParseJob(row->second);
  const v1::TrainingJobStatus& status = record.job().status();
  // One that broke in the same batch is aborted by the next words.
  const store::RingStage stage = forms ? store::RING_STAGE_FORMING : store::RING_STAGE_STARTED;
  const bool stored = status.generation() == ring.generation() &&
                      (record.stage() == stage || record.stage() == store::RING_STAGE_ABORTING);
  if (!stored) {
    Violated(absl::StrFormat("%s: told of generation %d, stored is %d in stage %d",
                             ring.training_job(), ring.generation(), status.generation(),
                             record.stage()));
  }
}

int Invariants::FaultsOf(const store::JobRecord& record, v1::Fault::Kind kind) const {
  const auto found = faults_.find({record.job().uid(), kind});
  return found == faults_.end() ? 0 : found->second;
}

bool Invariants::MayEnd(const store::JobRecord& record) const {
  if (record.proven_in() == 0) return true;
  const std::set<std::string> proven(record.proven().begin(), record.proven().end());
  for (const v1::RankAssignment& rank : record.job().status().ranks()) {
    if (proven.count(rank.incarnation()) > 0) return false;
  }
  return absl::StrContains(record.job().status().state_reason(), "times in a row") ||
         FaultsOf(record, v1::Fault::FORM_ERROR) + FaultsOf(record, v1::Fault::DATA_ERROR) > 1;
}

bool Invariants::IsAskedFor(const store::JobRecord& record) const {
  const std::string& reason = record.job().status().state_reason();
  const int budget = record.job().spec().recovery().episodes_max();
  switch (record.job().status().failure_class()) {
    case v1::INTERNAL:
      return absl::StrContains(reason, "injected (5 times in a row");
    case v1::USER_ERROR:
    case v1::DATA:
    case v1::OUT_OF_MEMORY:
      return absl::StrContains(reason, "misfit") && MayEnd(record);
    case v1::CHECKPOINT_LOST:
      // The last checkpoint could not be written, or none could be read, again and again.
      return absl::StartsWith(reason, "all ") ||
             FaultsOf(record, v1::Fault::CHECKPOINT_ERROR) >= std::clamp(budget - 1, 1, 8);
    case v1::BUDGET_EXHAUSTED:
      return budget < 100;
    case v1::MAX_RUNTIME_REACHED:
      return TimeLeft(record.job()) <= absl::ZeroDuration();
    default:
      return false;
  }
}

void Invariants::CheckFailure(const store::JobRecord& record) {
  if (!IsAskedFor(record)) {
    Violated(absl::StrCat(record.job().name(), " failed: ", record.ShortDebugString()));
  }
}

void Invariants::CheckMemory(const coordinator::Core& core, const Rows& rows) {
  const Queues queues = QueuesIn(rows);
  for (const std::string& wrong : CheckCeilings(core, queues)) Violated(wrong);
  for (const std::string& wrong : held_workers_.Check(core, queues)) Violated(wrong);
  for (const std::string& wrong : fair_shares_.Check(core, queues)) Violated(wrong);
  for (const std::string& wrong : CheckQuotaReasons(core, queues)) Violated(wrong);
  for (const std::string& wrong : queue_order_.Check(core)) Violated(wrong);
  for (const std::string& wrong : preemption_.Check(core)) Violated(wrong);
  for (const v1::TrainingJob* job : core.Jobs("projects/-")) {
    const v1::TrainingJobStatus& status = job->status();
    if (status.state() == v1::TrainingJobStatus::QUEUED && status.pending_reason().code().empty()) {
      Violated(absl::StrCat(job->name(), ": queued without a reason"));
    }
    if (status.state() == v1::TrainingJobStatus::RUNNING && TimeLeft(*job) < -kLongestFullDisk) {
      Violated(absl::StrCat(job->name(), ": runs on when its time is over"));
    }
    int64_t lost = 0;
    for (const v1::RecoveryEpisode& episode : status.episodes()) lost += episode.lost_steps();
    const auto before = steps_.find(job->uid());
    if (before != steps_.end()) {
      const int64_t fell = before->second.step - status.progress().step();
      if (fell > 0 && lost - before->second.lost < fell) {
        Violated(
            absl::StrFormat("%s: the agreed step fell by %d, but only %d more lost steps are "
                            "written down",
                            job->name(), fell, lost - before->second.lost));
      }
    }
    steps_[job->uid()] = {status.progress().step(), lost};
  }
}

}  // namespace ringmaster::simulation
