#include "worker/driver/convert_torchscale.h"

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "base/absolute_path.h"
#include "base/safetensors.h"
#include "base/status_macros.h"
#include "google/protobuf/util/time_util.h"
#include "models/scalar_type.h"
#include "models/torchscale_weights.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/shard_file.h"
#include "worker/supervise/supervisor.h"
#include "worker/torch_status.h"
#include "worker/train/job_config.h"

namespace ringmaster::worker {
namespace {

absl::StatusOr<models::TorchscaleModel> ModelOf(const ConvertTorchscaleOptions& options) {
  if (options.segment_lengths.size() != options.dilation_rates.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are ", options.segment_lengths.size(), " segment lengths and ",
                     options.dilation_rates.size(), " dilation rates; they must be as many"));
  }
  models::TorchscaleModel model;
  model.heads = options.heads;
  model.scaled_embedding = options.scaled_embedding;
  for (size_t i = 0; i < options.segment_lengths.size(); ++i) {
    model.branches.push_back({options.segment_lengths[i], options.dilation_rates[i]});
  }
  return model;
}

absl::StatusOr<v1::CheckpointShard> Write(const models::TorchscaleImport& imported,
                                          const ShardIdentity& identity) {
  const std::vector<models::ParameterSpec> specs = models::ParameterSpecs(imported.config);
  std::vector<HostTensor> tensors;
  for (size_t i = 0; i < specs.size(); ++i) {
    const at::Tensor& values = imported.parameters[i];
    tensors.push_back({{specs[i].name, models::StoredType(values.scalar_type()), specs[i].shape},
                       {static_cast<const char*>(values.const_data_ptr()), values.nbytes()}});
  }
  return WriteShard(identity, tensors);
}

// A YAML scalar, whatever the path holds.
std::string Quoted(const std::string& path) {
  return absl::StrCat("'", absl::StrReplaceAll(path, {{"'", "''"}}), "'");
}

std::string JobFile(const std::string& directory, const v1::TrainingJobSpec& spec) {
  const v1::ModelSpec& model = spec.model();
  const v1::AttentionSpec& attention = spec.attention();
  const auto truth = [](bool value) { return value ? "true" : "false"; };
  return absl::StrFormat(
      "init_from: %s\n"
      "model: {layers: %d, dim: %d, heads: %d, kv_heads: %d, ffn_dim: %d, vocab_size: %d,\n"
      "        positions: %s, tied_embeddings: %s, sub_ln: %s}\n"
      "attention: {segment_lengths: [%s], dilation_rates: [%s],\n"
      "            offset_mode: %s, mix_gradient: %s}\n",
      Quoted(directory), model.layers(), model.dim(), model.heads(), model.kv_heads(),
      model.ffn_dim(), model.vocab_size(), v1::Positions_Name(model.positions()),
      truth(model.tied_embeddings()), truth(model.sub_ln()),
      absl::StrJoin(attention.segment_lengths(), ", "),
      absl::StrJoin(attention.dilation_rates(), ", "), v1::OffsetMode_Name(attention.offset_mode()),
      v1::MixGradient_Name(attention.mix_gradient()));
}

}  // namespace

absl::StatusOr<std::string> ConvertTorchscale(const ConvertTorchscaleOptions& options) {
  ASSIGN_OR_RETURN(const models::TorchscaleModel model, ModelOf(options));
  ASSIGN_OR_RETURN(const safetensors::File file, safetensors::File::Open(options.weights));
  ShardIdentity identity;
  identity.incarnation = NewIncarnation();
  ASSIGN_OR_RETURN(identity.job_directory, AbsolutePath(options.directory));
  Manifest manifest;
  v1::Checkpoint& checkpoint = manifest.checkpoint;
  checkpoint.set_directory(CheckpointDirectory(identity.job_directory, 0));
  std::error_code error;
  if (std::filesystem::exists(checkpoint.directory() + "/manifest.json", error)) {
    return absl::AlreadyExistsError(
        absl::StrCat(checkpoint.directory(), " holds a checkpoint already"));
  }
  absl::StatusOr<models::TorchscaleImport> imported;
  RETURN_IF_ERROR(CatchTorch(absl::StrCat("reading ", options.weights), [&] {
    imported = models::ImportTorchscale(file, model);
    return absl::OkStatus();
  }));
  if (!imported.ok()) {
    return absl::Status(imported.status().code(),
                        absl::StrCat(options.weights, ": ", imported.status().message()));
  }
  RETURN_IF_ERROR(SetModel(imported->config, manifest.spec));
  ASSIGN_OR_RETURN(*checkpoint.add_shards(), Write(*imported, identity));
  checkpoint.set_bytes(checkpoint.shards(0).bytes());
  *checkpoint.mutable_create_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  RETURN_IF_ERROR(WriteManifestFile(identity.job_directory, 0, identity.incarnation, manifest));
  return JobFile(checkpoint.directory(), manifest.spec);
}

}  // namespace ringmaster::worker
