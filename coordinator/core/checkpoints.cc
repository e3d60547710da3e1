#include "coordinator/core/checkpoints.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/lifecycle.h"
#include "coordinator/core/names.h"
#include "coordinator/core/pages.h"
#include "coordinator/core/spec.h"
#include "coordinator/core/times.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

// Checkpoints that are being written at once; more means that some rank never reports.
constexpr size_t kPendingMax = 8;

std::string Prefix(absl::string_view job_name) { return absl::StrCat(job_name, "/checkpoints/"); }

std::string NameOf(const Job& job, int64_t step) {
  return absl::StrCat(Prefix(job.name()), "step-", step);
}

// Only files below the job's checkpoints folder are ours to commit or delete; a worker deletes no
// others.
bool IsOurs(const Job& job, const std::string& path) {
  return IsCleanAbsolutePath(path) && !absl::EndsWith(path, "/") &&
         absl::StartsWith(path, absl::StrCat(job.spec().directory(), "/checkpoints/"));
}

std::string ParentOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

// Why no checkpoint can have this shard; empty when one can.
std::string Objection(const Job& job, const v1::ShardWritten& written) {
  const std::string& path = written.shard().path();
  if (written.step() <= 0 || written.step() > job.spec().steps()) {
    return absl::StrFormat("the job has steps 1 to %d", job.spec().steps());
  }
  if (!IsOurs(job, path)) {
    return absl::StrCat("its shard ", path, " is not in the job's checkpoints folder");
  }
  const auto begun = job.shards.find(written.step());
  if (begun == job.shards.end()) return "";
  const std::string& other = begun->second.begin()->second.path();
  if (ParentOf(path) == ParentOf(other)) return "";
  return absl::StrCat("its shard ", path, " is not beside ", other);
}

bool IsInManifest(const State& state, const Job& job, const std::string& path) {
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    for (const v1::CheckpointShard& shard : checkpoint->shards()) {
      if (shard.path() == path) return true;
    }
  }
  return false;
}

void AddGarbage(State& state, Job& job, const std::string& path) {
  const auto& garbage = job.record.garbage();
  if (!IsOurs(job, path) || IsInManifest(state, job, path) ||
      std::find(garbage.begin(), garbage.end(), path) != garbage.end()) {
    return;
  }
  job.record.add_garbage(path);
  Store(state, job);
}

void Discard(State& state, Job& job, const std::map<int, v1::CheckpointShard>& shards) {
  for (const auto& [rank, shard] : shards) AddGarbage(state, job, shard.path());
}

// The manifest goes at once, the files when rank 0 is told.
void Retire(State& state, Job& job, v1::Checkpoint old) {
  state.checkpoints.erase(old.name());
  Erase(state, Table::kCheckpoints, old.name());
  for (const v1::CheckpointShard& shard : old.shards()) AddGarbage(state, job, shard.path());
}

void RetireSetAside(State& state, Job& job) {
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    if (checkpoint->set_aside()) Retire(state, job, *checkpoint);
  }
}

void ApplyRetention(State& state, Job& job) {
  const std::vector<const v1::Checkpoint*> checkpoints = CheckpointsOf(state, job);
  const auto keep = static_cast<size_t>(job.spec().checkpoint().keep_last());
  for (size_t i = 0; i + keep < checkpoints.size(); ++i) Retire(state, job, *checkpoints[i]);
}

void TellCommitted(State& state, const Job& job, const Worker& worker,
                   const v1::Checkpoint& checkpoint) {
  v1::Directive directive;
  *directive.mutable_checkpoint_committed()->mutable_ring() = RefOf(job, worker.rank);
  *directive.mutable_checkpoint_committed()->mutable_checkpoint() = checkpoint;
  Tell(state, worker, std::move(directive));
}

void Commit(State& state, Job& job, int64_t step,
            const std::map<int, v1::CheckpointShard>& shards) {
  store::CheckpointRecord record;
  record.set_training_job_uid(job.uid());
  v1::Checkpoint* checkpoint = record.mutable_checkpoint();
  checkpoint->set_name(NameOf(job, step));
  checkpoint->set_step(step);
  checkpoint->set_generation(job.generation());
  checkpoint->set_directory(ParentOf(shards.begin()->second.path()));
  int64_t bytes = 0;
  for (const auto& [rank, shard] : shards) {
    *checkpoint->add_shards() = shard;
    bytes += shard.bytes();
  }
  checkpoint->set_bytes(bytes);
  *checkpoint->mutable_create_time() = ToProto(state.now);
  // First: one of them may have the new one's name.
  RetireSetAside(state, job);
  Put(state, Table::kCheckpoints, checkpoint->name(), record);
  job.mutable_status()->set_last_checkpoint(checkpoint->name());
  if (const Worker* rank_0 = state.Member(job, 0); rank_0 != nullptr) {
    TellCommitted(state, job, *rank_0, *checkpoint);
  }
  state.checkpoints[checkpoint->name()] = std::move(record);
  ++state.counters.checkpoints_committed;
  if (std::exchange(job.failed_stops, 0) > 0) {
    // Whoever waits for its workers may have them now.
    state.placement_due = true;
    job.stop_again = state.now;
    state.timers.Set(TimerKind::kStopAgain, job.name(), state.now);
  }
  ApplyRetention(state, job);
  if (absl::StartsWith(job.status().state_reason(), "checkpoint")) {
    job.mutable_status()->clear_state_reason();
  }
  Store(state, job);
}

void NoteFailure(State& state, Job& job, int rank, const v1::ShardWritten& written,
                 const std::string& reason) {
  ++state.counters.checkpoint_failures[written.error().empty() ? "invalid_shard" : "write_error"];
  job.mutable_status()->set_state_reason(
      absl::StrFormat("checkpoint of step %d failed on rank %d: %s", written.step(), rank, reason));
  const auto pending = job.shards.find(written.step());
  if (pending != job.shards.end()) {
    Discard(state, job, pending->second);
    job.shards.erase(pending);
  }
  Store(state, job);
}

}  // namespace

void OnShardWritten(State& state, Job& job, int rank, const v1::ShardWritten& written) {
  if (job.record.stage() != store::RING_STAGE_STARTED) {
    DiscardStaleShard(state, job, written);
    return;
  }
  const v1::Checkpoint* newest = NewestOf(state, job);
  if (newest != nullptr && written.step() <= newest->step()) {
    // Told again after a re-attach, be it a failure or a shard of a checkpoint that retention may
    // have deleted since, or the step was done again: the first manifest stands.
    AddGarbage(state, job, written.shard().path());
    if (rank == 0) TellCommitted(state, job, *state.Member(job, 0), *newest);
    return;
  }
  if (!written.error().empty()) {
    NoteFailure(state, job, rank, written, written.error());
    return;
  }
  if (const std::string objection = Objection(job, written); !objection.empty()) {
    DiscardStaleShard(state, job, written);
    NoteFailure(state, job, rank, written, objection);
    return;
  }
  v1::CheckpointShard shard = written.shard();
  shard.set_rank(rank);
  job.shards[written.step()][rank] = std::move(shard);
  if (job.shards.size() > kPendingMax) {
    Discard(state, job, job.shards.begin()->second);
    job.shards.erase(job.shards.begin());
  }
  CommitComplete(state, job);
}

void CommitComplete(State& state, Job& job) {
  if (state.store_full || job.record.stage() != store::RING_STAGE_STARTED) return;
  const auto world = static_cast<size_t>(job.world_size());
  for (auto it = job.shards.begin(); it != job.shards.end();) {
    if (it->second.size() < world) {
      ++it;
      continue;
    }
    const int64_t step = it->first;
    const auto shards = std::move(it->second);
    // A checkpoint that is still incomplete is of no use once a newer one exists.
    for (auto old = job.shards.begin(); old != it; ++old) Discard(state, job, old->second);
    it = job.shards.erase(job.shards.begin(), std::next(it));
    Commit(state, job, step, shards);
    TellGarbage(state, job);
  }
}

void SetAsideAfter(State& state, Job& job, const v1::RestorePlan& plan) {
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    // Only who has read it knows that it can be read again.
    const bool read = plan.source() == v1::RecoveryEpisode::CHECKPOINT &&
                      plan.checkpoint().name() == checkpoint->name();
    const bool aside = checkpoint->step() > plan.step() || (checkpoint->set_aside() && !read);
    if (checkpoint->set_aside() == aside) continue;
    store::CheckpointRecord& record = state.checkpoints.at(checkpoint->name());
    record.mutable_checkpoint()->set_set_aside(aside);
    Put(state, Table::kCheckpoints, checkpoint->name(), record);
  }
  const v1::Checkpoint* newest = NewestOf(state, job);
  job.mutable_status()->set_last_checkpoint(newest == nullptr ? "" : newest->name());
}

void DiscardStaleShard(State& state, Job& job, const v1::ShardWritten& written) {
  if (!written.shard().path().empty()) AddGarbage(state, job, written.shard().path());
}

void DiscardShards(State& state, Job& job) {
  for (const auto& [step, shards] : std::exchange(job.shards, {})) Discard(state, job, shards);
}

void TellCheckpoints(State& state, const Job& job, const Worker& worker) {
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    TellCommitted(state, job, worker, *checkpoint);
  }
}

void TellGarbage(State& state, Job& job, int rank) {
  if (rank >= job.status().ranks_size()) return;
  const Worker* worker = state.Member(job, rank);
  if (worker == nullptr || !worker->attached() || job.garbage_told >= job.record.garbage_size()) {
    return;
  }
  v1::Directive directive;
  *directive.mutable_delete_files()->mutable_ring() = RefOf(job, rank);
  for (int i = job.garbage_told; i < job.record.garbage_size(); ++i) {
    directive.mutable_delete_files()->add_paths(job.record.garbage(i));
  }
  job.garbage_told = job.record.garbage_size();
  Tell(state, *worker, std::move(directive));
}

void OnFilesDeleted(State& state, Job& job, const v1::FilesDeleted& deleted) {
  const std::set<std::string> gone(deleted.paths().begin(), deleted.paths().end());
  auto* garbage = job.record.mutable_garbage();
  int kept = 0;
  int kept_told = 0;
  for (int i = 0; i < garbage->size(); ++i) {
    if (gone.count(garbage->Get(i)) > 0) continue;
    if (i < job.garbage_told) ++kept_told;
    garbage->SwapElements(kept++, i);
  }
  if (kept == garbage->size()) return;
  garbage->DeleteSubrange(kept, garbage->size() - kept);
  job.garbage_told = kept_told;
  Store(state, job);
}

namespace {

std::vector<const v1::Checkpoint*> CheckpointsBelow(const State& state, const std::string& prefix) {
  std::vector<const v1::Checkpoint*> found;
  for (auto it = state.checkpoints.lower_bound(prefix);
       it != state.checkpoints.end() && absl::StartsWith(it->first, prefix); ++it) {
    found.push_back(&it->second.checkpoint());
  }
  std::sort(found.begin(), found.end(), [](const auto* a, const auto* b) {
    return std::pair(a->step(), a->name()) < std::pair(b->step(), b->name());
  });
  return found;
}

}  // namespace

std::vector<const v1::Checkpoint*> CheckpointsOf(const State& state, const Job& job) {
  return CheckpointsBelow(state, Prefix(job.name()));
}

const v1::Checkpoint* NewestOf(const State& state, const Job& job) {
  const std::vector<const v1::Checkpoint*> all = CheckpointsOf(state, job);
  const auto newest = std::find_if(all.rbegin(), all.rend(),
                                   [](const v1::Checkpoint* one) { return !one->set_aside(); });
  return newest == all.rend() ? nullptr : *newest;
}

bool IsCommitted(const State& state, const Job& job, int64_t step) {
  const auto found = state.checkpoints.find(NameOf(job, step));
  return found != state.checkpoints.end() && !found->second.checkpoint().set_aside();
}

void EraseCheckpoints(State& state, const Job& job) {
  std::vector<std::string> names;
  for (const v1::Checkpoint* checkpoint : CheckpointsOf(state, job)) {
    names.push_back(checkpoint->name());
  }
  for (const std::string& name : names) {
    state.checkpoints.erase(name);
    Erase(state, Table::kCheckpoints, name);
  }
}

absl::StatusOr<v1::Checkpoint> GetCheckpoint(State& state,
                                             const v1::GetCheckpointRequest& request) {
  RETURN_IF_ERROR(ParseCheckpointName("name", request.name()).status());
  const auto found = state.checkpoints.find(request.name());
  if (found == state.checkpoints.end()) return NotFound("checkpoint", request.name());
  return found->second.checkpoint();
}

absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(
    State& state, const v1::ListCheckpointsRequest& request) {
  ASSIGN_OR_RETURN(const JobName parent, ParseJobName("parent", request.parent()));
  if (parent.job != kImportedJobId && state.FindJob(request.parent()) == nullptr) {
    return NotFound("training job", request.parent());
  }
  ASSIGN_OR_RETURN(const int size, PageSize(request.page_size()));
  v1::ListCheckpointsRequest bound = request;
  bound.clear_page_size();
  bound.clear_page_token();
  ASSIGN_OR_RETURN(const std::string after, ParsePageToken(bound, request.page_token()));
  std::vector<const v1::Checkpoint*> all = CheckpointsBelow(state, Prefix(request.parent()));
  std::reverse(all.begin(), all.end());
  v1::ListCheckpointsResponse response;
  const auto key = [](const v1::Checkpoint& c) {
    return absl::StrFormat("%020d/%s", c.step(), c.name());
  };
  size_t bytes = 0;
  for (const v1::Checkpoint* checkpoint : all) {
    if (!after.empty() && key(*checkpoint) >= after) continue;
    if (response.checkpoints_size() == size || bytes >= kPageBytes) {
      response.set_next_page_token(MakePageToken(bound, key(*response.checkpoints().rbegin())));
      break;
    }
    *response.add_checkpoints() = *checkpoint;
    bytes += checkpoint->ByteSizeLong();
  }
  return response;
}

namespace {

// A worker may have been told already to delete its files.
absl::Status CheckNotDoomed(const State& state, const v1::Checkpoint& checkpoint) {
  std::set<absl::string_view> paths;
  for (const v1::CheckpointShard& shard : checkpoint.shards()) paths.insert(shard.path());
  for (const auto& [name, job] : state.jobs) {
    for (const std::string& path : job->record.garbage()) {
      if (paths.count(path) == 0) continue;
      return FailedPrecondition(
          "CHECKPOINT_BEING_DELETED", name,
          absl::StrCat(name, " has given this checkpoint up, and ", path, " is to be deleted"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::Checkpoint> ImportCheckpoint(
    State& state, const v1::ImportCheckpointRequest& request,
    const std::optional<absl::StatusOr<ManifestFile>>& manifest) {
  ASSIGN_OR_RETURN(const std::string project, ParseParent("parent", request.parent(), false));
  if (!IsCleanAbsolutePath(request.directory())) {
    return InvalidField("directory", absl::StrCat("'", request.directory(),
                                                  "' must be the absolute path of a directory "
                                                  "with a manifest.json"));
  }
  RETURN_IF_ERROR(Refusal(state));
  if (!manifest.has_value() || !manifest->ok()) {
    return InvalidField("directory", manifest.has_value()
                                         ? manifest->status().message()
                                         : absl::string_view("its manifest.json was not read"));
  }
  const v1::Checkpoint& file = (*manifest)->checkpoint;
  if (file.shards().empty()) {
    return InvalidField("directory", "its manifest.json names no shard");
  }
  for (const auto& [name, record] : state.checkpoints) {
    if (record.checkpoint().directory() == file.directory()) {
      return AlreadyExists("CHECKPOINT_EXISTS", "checkpoint", name,
                           absl::StrCat(file.directory(), " is known already as ", name));
    }
  }
  RETURN_IF_ERROR(CheckNotDoomed(state, file));
  store::CheckpointRecord record;
  v1::Checkpoint* checkpoint = record.mutable_checkpoint();
  *checkpoint = file;
  checkpoint->set_name(absl::StrFormat("%sstep-%d-%08x",
                                       Prefix(FormatJobName(project, kImportedJobId)), file.step(),
                                       RequestHash(request) & 0xFFFFFFFF));
  Put(state, Table::kCheckpoints, checkpoint->name(), record);
  state.checkpoints[checkpoint->name()] = record;
  return record.checkpoint();
}

}  // namespace ringmaster::coordinator
