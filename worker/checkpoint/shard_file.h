#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/safetensors.h"
#include "ringmaster/v1/checkpoint_service.pb.h"
#include "ringmaster/v1/worker_service.pb.h"

namespace ringmaster::worker {

// Which shard of which checkpoint.
struct ShardIdentity {
  v1::RingRef ring;
  int world_size = 1;
  // 32 hexadecimal digits: the process that writes.
  std::string incarnation;
  // Optimizer updates the tensors contain.
  int64_t step = 0;
  std::string job_directory;
};

// A tensor in host memory, contiguous and row-major.
struct HostTensor {
  safetensors::TensorSpec spec;
  absl::Span<const char> bytes;
};

// Writes one shard so that it is whole, durable and final before its name exists: temporary name,
// fsync, link without replacing, fsync of the directory. The error says what was tried and on which
// path; ResourceExhausted: the disk is full, AlreadyExists: the final name is taken,
// PermissionDenied: a symbolic link leads out of the job's checkpoints. After an error
// nothing is left. Blocks; thread-safe.
absl::StatusOr<v1::CheckpointShard> WriteShard(const ShardIdentity& identity,
                                               absl::Span<const HostTensor> tensors);

// OK when the file has the size and the XXH3-64 that `shard` says: NotFound, or DataLoss naming
// path and both values. Reads the whole file; Cancelled when `cancelled`, asked at each MiB, says
// so.
absl::Status VerifyShard(
    const v1::CheckpointShard& shard, absl::FunctionRef<bool()> cancelled = [] { return false; });

}  // namespace ringmaster::worker
