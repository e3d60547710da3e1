#include "worker/train/job_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/status_macros.h"
#include "proto/attention_spec.h"

namespace ringmaster::worker {
namespace {

struct Needed {
  bool set;
  const char* field;
};

absl::Status CheckFilledIn(absl::Span<const Needed> needed) {
  for (const auto& [set, field] : needed) {
    if (!set) {
      return absl::InvalidArgumentError(absl::StrCat("the job's spec says nothing about ", field,
                                                     "; the coordinator fills it in"));
    }
  }
  return absl::OkStatus();
}

// A resolved spec has all of these. Checked in one place, so that the reading below is plain.
absl::Status CheckModelFilledIn(const v1::TrainingJobSpec& spec) {
  return CheckFilledIn({
      {spec.model().layers() > 0, "model.layers"},
      {spec.model().dim() > 0, "model.dim"},
      {spec.model().heads() > 0, "model.heads"},
      {spec.model().kv_heads() > 0, "model.kv_heads"},
      {spec.model().ffn_dim() > 0, "model.ffn_dim"},
      {spec.model().vocab_size() > 0, "model.vocab_size"},
      {spec.model().positions() != v1::POSITIONS_UNSPECIFIED, "model.positions"},
      {spec.model().has_tied_embeddings(), "model.tied_embeddings"},
      {spec.model().has_sub_ln(), "model.sub_ln"},
  });
}

absl::Status CheckAttentionFilledIn(const v1::AttentionSpec& attention) {
  if (attention.has_block_sparse()) {
    const v1::BlockSparseSpec& blocks = attention.block_sparse();
    return CheckFilledIn({
        {blocks.kind() != v1::BlockSparseSpec::KIND_UNSPECIFIED, "attention.block_sparse.kind"},
        {blocks.density() > 0, "attention.block_sparse.density"},
        {blocks.block_size() > 0, "attention.block_sparse.block_size"},
    });
  }
  return CheckFilledIn({
      {attention.segment_lengths_size() > 0, "attention.segment_lengths"},
      {attention.offset_mode() != v1::OFFSET_MODE_UNSPECIFIED, "attention.offset_mode"},
      {attention.mix_gradient() != v1::MIX_GRADIENT_UNSPECIFIED, "attention.mix_gradient"},
  });
}

absl::Status CheckRestFilledIn(const v1::TrainingJobSpec& spec) {
  return CheckFilledIn({
      {spec.data().paths_size() > 0, "data.paths"},
      {spec.data().sequence_length() > 0, "data.sequence_length"},
      {spec.data().has_validation_fraction(), "data.validation_fraction"},
      {spec.optimizer().has_lr(), "optimizer.lr"},
      {spec.optimizer().has_beta1(), "optimizer.beta1"},
      {spec.optimizer().has_beta2(), "optimizer.beta2"},
      {spec.optimizer().has_epsilon(), "optimizer.epsilon"},
      {spec.optimizer().has_weight_decay(), "optimizer.weight_decay"},
      {spec.optimizer().has_clip_norm(), "optimizer.clip_norm"},
      {spec.schedule().has_warmup_steps(), "schedule.warmup_steps"},
      {spec.schedule().decay() != v1::DECAY_UNSPECIFIED, "schedule.decay"},
      {spec.schedule().has_final_lr_ratio(), "schedule.final_lr_ratio"},
      {spec.schedule().has_power(), "schedule.power"},
      {spec.batch().global_sequences() > 0, "batch.global_sequences"},
      {spec.batch().micro_sequences() > 0, "batch.micro_sequences"},
      {spec.parallel().ring_size() > 0, "parallel.ring_size"},
      {spec.parallel().replicas() > 0, "parallel.replicas"},
      {spec.precision() != v1::PRECISION_UNSPECIFIED, "precision"},
      {spec.steps() > 0, "steps"},
      {spec.validation().interval_steps() != 0, "validation.interval_steps"},
      {spec.validation().sequences() > 0, "validation.sequences"},
      {spec.resources().threads() > 0, "resources.threads"},
  });
}

absl::Status CheckSizes(const JobConfig& config) {
  const int64_t multiple = config.micro_sequences * config.replicas;
  if (config.global_sequences % multiple != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "batch.global_sequences is ", config.global_sequences,
        "; it must be a multiple of batch.micro_sequences x parallel.replicas, ", multiple));
  }
  if (config.model.vocab_size < 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab_size is ", config.model.vocab_size, "; bytes need at least 256"));
  }
  if (config.validation_interval > 0 && config.validation_fraction <= 0) {
    return absl::InvalidArgumentError(
        "validation.interval_steps is set, but data.validation_fraction is 0; set one of them to "
        "hold data out, or validation.interval_steps to -1");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<models::LongNetConfig> ModelConfigFromSpec(const v1::TrainingJobSpec& spec) {
  RETURN_IF_ERROR(CheckModelFilledIn(spec));
  RETURN_IF_ERROR(CheckAttentionFilledIn(spec.attention()));
  models::LongNetConfig model;
  model.layers = spec.model().layers();
  model.dim = spec.model().dim();
  model.heads = spec.model().heads();
  model.kv_heads = spec.model().kv_heads();
  model.ffn_dim = spec.model().ffn_dim();
  model.vocab_size = spec.model().vocab_size();
  model.positions = spec.model().positions() == v1::ROTARY ? models::Positions::kRotary
                    : spec.model().positions() == v1::XPOS ? models::Positions::kXpos
                                                           : models::Positions::kNone;
  model.tied_embeddings = spec.model().tied_embeddings();
  model.sub_ln = spec.model().sub_ln();
  if (spec.attention().has_block_sparse()) {
    ASSIGN_OR_RETURN(model.blocks, BlocksFromSpec(spec.attention().block_sparse(), model.heads));
  } else {
    ASSIGN_OR_RETURN(model.attention, BranchesFromSpec(spec.attention()));
  }
  RETURN_IF_ERROR(model.Validate());
  return model;
}

absl::Status SetModel(const models::LongNetConfig& config, v1::TrainingJobSpec& spec) {
  v1::ModelSpec& model = *spec.mutable_model();
  const struct {
    const char* name;
    int64_t value;
    void (v1::ModelSpec::*set)(int32_t);
  } sizes[] = {{"layers", config.layers, &v1::ModelSpec::set_layers},
               {"dim", config.dim, &v1::ModelSpec::set_dim},
               {"heads", config.heads, &v1::ModelSpec::set_heads},
               {"kv_heads", config.kv_heads, &v1::ModelSpec::set_kv_heads},
               {"ffn_dim", config.ffn_dim, &v1::ModelSpec::set_ffn_dim},
               {"vocab_size", config.vocab_size, &v1::ModelSpec::set_vocab_size}};
  for (const auto& [name, value, set] : sizes) {
    if (value > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.", name, " is ", value, "; a job's is below 2^31"));
    }
    (model.*set)(static_cast<int32_t>(value));
  }
  model.set_positions(config.positions == models::Positions::kRotary ? v1::ROTARY
                      : config.positions == models::Positions::kXpos ? v1::XPOS
                                                                     : v1::NO_POSITIONS);
  model.set_tied_embeddings(config.tied_embeddings);
  model.set_sub_ln(config.sub_ln);
  spec.clear_attention();
  if (config.blocks.has_value()) {
    SetBlocks(*config.blocks, *spec.mutable_attention()->mutable_block_sparse());
  } else {
    SetBranches(config.attention, *spec.mutable_attention());
  }
  return absl::OkStatus();
}

absl::StatusOr<JobConfig> JobConfigFromSpec(const v1::TrainingJobSpec& spec) {
  JobConfig config;
  ASSIGN_OR_RETURN(config.model, ModelConfigFromSpec(spec));
  RETURN_IF_ERROR(CheckRestFilledIn(spec));
  const v1::OptimizerSpec& optimizer = spec.optimizer();
  config.optimizer = {optimizer.lr(),      optimizer.beta1(),        optimizer.beta2(),
                      optimizer.epsilon(), optimizer.weight_decay(), optimizer.clip_norm()};
  const v1::ScheduleSpec& schedule = spec.schedule();
  config.schedule = {schedule.warmup_steps(),
                     schedule.decay() == v1::COSINE       ? Decay::kCosine
                     : schedule.decay() == v1::POLYNOMIAL ? Decay::kPolynomial
                                                          : Decay::kConstant,
                     schedule.final_lr_ratio(), schedule.power()};
  config.precision = spec.precision() == v1::FP64   ? Precision::kFp64
                     : spec.precision() == v1::BF16 ? Precision::kBf16
                                                    : Precision::kFp32;
  config.activation_checkpointing = spec.activation_checkpointing();
  config.dropout = spec.dropout();
  config.attention_dropout = spec.attention().dropout();
  config.steps = spec.steps();
  config.seed = spec.seed();
  config.data_paths.assign(spec.data().paths().begin(), spec.data().paths().end());
  config.sequence_length = spec.data().sequence_length();
  config.validation_fraction = spec.data().validation_fraction();
  config.data_seed = spec.data().seed();
  config.validation_interval = spec.validation().interval_steps();
  config.validation_sequences = spec.validation().sequences();
  config.global_sequences = spec.batch().global_sequences();
  config.micro_sequences = spec.batch().micro_sequences();
  config.ring_size = spec.parallel().ring_size();
  config.replicas = spec.parallel().replicas();
  config.threads = spec.resources().threads();
  RETURN_IF_ERROR(CheckSizes(config));
  return config;
}

double LearningRate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t steps,
                    int64_t step) {
  const auto done = static_cast<double>(step + 1);
  const auto warmup = static_cast<double>(schedule.warmup_steps);
  if (done < warmup) {
    return optimizer.lr * done / warmup;
  }
  const double span = std::max(1.0, static_cast<double>(steps) - warmup);
  const double left = 1 - std::clamp((done - warmup) / span, 0.0, 1.0);
  double share = 1;
  switch (schedule.decay) {
    case Decay::kCosine:
      share = (1 - std::cos(std::numbers::pi * left)) / 2;
      break;
    case Decay::kPolynomial:
      share = std::pow(left, schedule.power);
      break;
    case Decay::kConstant:
      return optimizer.lr;
  }
  return optimizer.lr * (schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * share);
}

}  // namespace ringmaster::worker
