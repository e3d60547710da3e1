#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "ringmaster/v1/checkpoint_service.pb.h"
#include "ringmaster/v1/job.pb.h"
#include "ringmaster/v1/worker_service.pb.h"

// The files of a checkpoint: names, manifest, deletion. docs/files.md is their specification. All
// functions are thread-safe; those that touch the disk block.
namespace ringmaster::worker {

inline constexpr char kCheckpointFormat[] = "ringmaster-checkpoint-1";

// "{job_directory}/checkpoints".
std::string CheckpointsFolder(const std::string& job_directory);
// "{job_directory}/checkpoints/step-00000500".
std::string CheckpointDirectory(const std::string& job_directory, int64_t step);
// "shard-00001-of-00002-g3-{incarnation}.safetensors".
std::string ShardFileName(int rank, int world_size, int64_t generation,
                          const std::string& incarnation);

// What manifest.json says.
struct Manifest {
  // Shards have absolute paths, beside the manifest. `name` is empty: it is the coordinator's to
  // give.
  v1::Checkpoint checkpoint;
  std::string training_job;
  std::string training_job_uid;
  // Every default filled in.
  v1::TrainingJobSpec spec;
};

// Writes `manifest.json` into checkpoint.directory, by temporary name, fsync and rename; repeating
// it does no harm. InvalidArgument when a shard lies elsewhere, PermissionDenied when the directory
// is not below the job's checkpoints folder, links followed, else what the system says. No two
// processes may write as the same generation and incarnation, and one process one at a time.
absl::Status WriteManifestFile(const std::string& job_directory, int64_t generation,
                               const std::string& incarnation, const Manifest& manifest);

// Whether checkpoint.directory holds the manifest.json of this job, step and generation; what
// became of its shards is another matter.
bool HasManifestFile(const Manifest& manifest);

// `path` is a manifest.json or the directory that holds one. NotFound, InvalidArgument (not a
// manifest; a shard name with a '/'), DataLoss (a shard is missing or has another size) or what the
// system says, naming the file.
absl::StatusOr<Manifest> ReadManifestFile(const std::string& path);

// Deletes shards below the job's checkpoints folder, before them the manifest.json beside them when
// it names one of them or is no manifest, and then directories left empty. Left alone: a path that
// is not below that folder, links followed, and shards whose manifest.json cannot be read or
// removed. Returns which of `paths` are gone.
std::vector<std::string> DeleteCheckpointFiles(const std::string& job_directory,
                                               absl::Span<const std::string> paths);

// Removes temporary files of shards and manifests that earlier generations left behind, as long as
// the directory is `still_ours`: they do not tell jobs apart.
void SweepTemporaryFiles(const std::string& job_directory, int64_t generation,
                         absl::FunctionRef<bool()> still_ours);

// Removes shards of the job that were written by generations before `ring` and belong to no
// checkpoint in `existing`: of attempts that were never committed, and whose writer did not live to
// tell of them. REQUIRES: `existing` holds every checkpoint that these generations committed.
void SweepShards(const std::string& job_directory, const v1::RingRef& ring,
                 const v1::ExistingCheckpoints& existing);

// mkdir -p; the new directories survive a power loss.
absl::Status MakeDirectories(const std::string& path);
// Makes a new or removed name in `directory` survive a power loss.
absl::Status SyncDirectory(const std::string& directory);

}  // namespace ringmaster::worker
