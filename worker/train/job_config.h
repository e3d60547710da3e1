#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/longnet_config.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::worker {

// kBf16 computes in bf16 and keeps fp32 parameters and optimizer state.
enum class Precision { kFp32, kBf16, kFp64 };
enum class Decay { kCosine, kPolynomial, kConstant };

// Plain values of OptimizerSpec and ScheduleSpec, whose comments say what they mean.
struct OptimizerConfig {
  double lr = 0;
  double beta1 = 0;
  double beta2 = 0;
  double epsilon = 0;
  double weight_decay = 0;
  double clip_norm = 0;
};
struct ScheduleConfig {
  int64_t warmup_steps = 0;
  Decay decay = Decay::kCosine;
  double final_lr_ratio = 0;
  double power = 1;
};

// What training needs of a TrainingJobSpec, as plain values.
struct JobConfig {
  models::LongNetConfig model;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  Precision precision = Precision::kFp32;
  bool activation_checkpointing = false;
  double dropout = 0;
  double attention_dropout = 0;
  int64_t steps = 0;
  uint64_t seed = 0;

  std::vector<std::string> data_paths;
  int64_t sequence_length = 0;
  double validation_fraction = 0;
  uint64_t data_seed = 0;
  // Steps between validations; -1: never.
  int64_t validation_interval = -1;
  int64_t validation_sequences = 0;

  int64_t global_sequences = 1;
  int64_t micro_sequences = 1;
  int ring_size = 1;
  int replicas = 1;
  int threads = 1;

  int world_size() const { return ring_size * replicas; }
  int64_t tokens_per_step() const { return global_sequences * sequence_length; }
};

// Reads a spec in which the coordinator has filled in every default. InvalidArgument naming the
// field when one is unset or does not fit the others; defaults are not repeated here.
absl::StatusOr<JobConfig> JobConfigFromSpec(const v1::TrainingJobSpec& spec);
// Of such a spec model and attention alone: what it takes to use a checkpoint's weights.
absl::StatusOr<models::LongNetConfig> ModelConfigFromSpec(const v1::TrainingJobSpec& spec);

// Its inverse: fills in model and attention, all fields but the preset. InvalidArgument naming a
// size that a spec cannot hold. REQUIRES: config.Validate() is OK.
absl::Status SetModel(const models::LongNetConfig& config, v1::TrainingJobSpec& spec);

// The learning rate of the update that leads from `step` to `step` + 1.
double LearningRate(const OptimizerConfig& optimizer, const ScheduleConfig& schedule, int64_t steps,
                    int64_t step);

}  // namespace ringmaster::worker
