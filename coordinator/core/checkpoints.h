#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/core/events.h"
#include "coordinator/core/state.h"

// Checkpoints: committed when all shards of one (generation, step) are reported, deleted past
// retention, imported, listed.
namespace ringmaster::coordinator {

// A member's report about the current generation, which steps.
void OnShardWritten(State& state, Job& job, int rank, const v1::ShardWritten& written);
// A shard of a generation that is no longer: its file is garbage.
void DiscardStaleShard(State& state, Job& job, const v1::ShardWritten& written);

// Shards of checkpoints that will never be complete become garbage.
void DiscardShards(State& state, Job& job);
// Tells a member which checkpoints the job has, so that their manifest.json is written where it is
// missing: who was told before may not have lived to do it.
void TellCheckpoints(State& state, const Job& job, const Worker& worker);
// Tells a rank, if there, to delete the garbage that nobody was told of yet in this generation.
void TellGarbage(State& state, Job& job, int rank = 0);
// Any worker's report, whatever the generation: a fact about the disk.
void OnFilesDeleted(State& state, Job& job, const v1::FilesDeleted& deleted);
// The job goes on as planned: checkpoints of later steps, which could not be read, count no more
// until one is restored from. Their files go when a newer one is committed.
void SetAsideAfter(State& state, Job& job, const v1::RestorePlan& plan);
// Commits what waited while the store was full.
void CommitComplete(State& state, Job& job);

// Of this job, oldest first, those set aside too.
std::vector<const v1::Checkpoint*> CheckpointsOf(const State& state, const Job& job);
// The newest that was not set aside, or null.
const v1::Checkpoint* NewestOf(const State& state, const Job& job);
// Not when it was set aside.
bool IsCommitted(const State& state, const Job& job, int64_t step);
void EraseCheckpoints(State& state, const Job& job);

absl::StatusOr<v1::Checkpoint> GetCheckpoint(State& state, const v1::GetCheckpointRequest& request);
absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(
    State& state, const v1::ListCheckpointsRequest& request);
absl::StatusOr<v1::Checkpoint> ImportCheckpoint(
    State& state, const v1::ImportCheckpointRequest& request,
    const std::optional<absl::StatusOr<ManifestFile>>& manifest);

}  // namespace ringmaster::coordinator
