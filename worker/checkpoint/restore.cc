#include "worker/checkpoint/restore.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/safetensors.h"
#include "base/status_macros.h"
#include "models/scalar_type.h"
#include "worker/checkpoint/shard_file.h"
#include "worker/torch_status.h"

namespace ringmaster::worker {
namespace {

struct Stored {
  const safetensors::File* file = nullptr;
  const safetensors::Tensor* tensor = nullptr;
};

// The files of a checkpoint, mapped, and where each tensor is.
struct OpenCheckpoint {
  std::vector<std::unique_ptr<safetensors::File>> files;
  std::map<std::string, Stored> tensors;
};

absl::StatusOr<OpenCheckpoint> Open(const v1::Checkpoint& checkpoint,
                                    absl::FunctionRef<bool()> cancelled) {
  OpenCheckpoint open;
  for (const v1::CheckpointShard& shard : checkpoint.shards()) {
    RETURN_IF_ERROR(VerifyShard(shard, cancelled));
    ASSIGN_OR_RETURN(safetensors::File file, safetensors::File::Open(shard.path()));
    open.files.push_back(std::make_unique<safetensors::File>(std::move(file)));
    for (const safetensors::Tensor& tensor : open.files.back()->header().tensors) {
      open.tensors[tensor.name] = {open.files.back().get(), &tensor};
    }
  }
  return open;
}

absl::StatusOr<Stored> Find(const OpenCheckpoint& open, const v1::Checkpoint& checkpoint,
                            const TrainingState::NamedTensor& wanted) {
  const auto found = open.tensors.find(wanted.name);
  if (found == open.tensors.end()) {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint ", checkpoint.directory(),
                                                   " holds no tensor ", wanted.name,
                                                   ": its model is another one"));
  }
  const std::vector<int64_t>& shape = found->second.tensor->shape;
  if (wanted.tensor.sizes() != at::IntArrayRef(shape)) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoint ", checkpoint.directory(), ": tensor ", wanted.name,
                     " has shape [", absl::StrJoin(shape, ", "), "], the model needs [",
                     absl::StrJoin(wanted.tensor.sizes(), ", "), "]"));
  }
  return found->second;
}

absl::Status Copy(const Stored& stored, const at::Tensor& to) {
  ASSIGN_OR_RETURN(const at::ScalarType type, models::ScalarTypeOf(*stored.tensor));
  const absl::Span<const char> bytes = stored.file->Bytes(*stored.tensor);
  return CatchTorch(absl::StrCat("loading tensor ", stored.tensor->name), [&] {
    to.copy_(at::from_blob(const_cast<char*>(bytes.data()), to.sizes(),
                           at::TensorOptions().dtype(type)));
    return absl::OkStatus();
  });
}

// Writes the copies of the parameters too, on the device.
absl::Status MarkClean(TrainingState& state, int64_t step) {
  return CatchTorch("restoring the parameters' copies", [&] {
    state.MarkClean(step);
    return absl::OkStatus();
  });
}

// Checks everything, calls `ready`, then copies.
absl::Status Load(const v1::Checkpoint& checkpoint,
                  absl::Span<const TrainingState::NamedTensor> tensors,
                  absl::FunctionRef<void()> ready, absl::FunctionRef<bool()> cancelled) {
  ASSIGN_OR_RETURN(const OpenCheckpoint open, Open(checkpoint, cancelled));
  std::vector<Stored> stored;
  for (const TrainingState::NamedTensor& tensor : tensors) {
    ASSIGN_OR_RETURN(stored.emplace_back(), Find(open, checkpoint, tensor));
    RETURN_IF_ERROR(models::ScalarTypeOf(*stored.back().tensor).status());
  }
  ready();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (cancelled()) {
      return absl::CancelledError(
          absl::StrCat("restoring checkpoint ", checkpoint.directory(), " was cancelled"));
    }
    RETURN_IF_ERROR(Copy(stored[i], tensors[i].tensor));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LoadTensors(const v1::Checkpoint& checkpoint,
                         absl::Span<const TrainingState::NamedTensor> tensors,
                         absl::FunctionRef<bool()> cancelled) {
  return Load(
      checkpoint, tensors, [] {}, cancelled);
}

absl::Status RestoreState(const v1::Checkpoint& checkpoint, TrainingState& state,
                          absl::FunctionRef<bool()> cancelled) {
  RETURN_IF_ERROR(Load(
      checkpoint, state.NamedTensors(), [&] { state.MarkDirty(); }, cancelled));
  return MarkClean(state, checkpoint.step());
}

absl::Status RestoreWeights(const v1::Checkpoint& checkpoint, TrainingState& state,
                            absl::FunctionRef<bool()> cancelled) {
  RETURN_IF_ERROR(Load(
      checkpoint, state.Weights(), [&] { state.MarkDirty(); }, cancelled));
  return MarkClean(state, 0);
}

}  // namespace ringmaster::worker
