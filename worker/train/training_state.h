#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/longnet.h"
#include "models/parameters.h"
#include "worker/train/job_config.h"

namespace ringmaster::worker {

// All that a worker holds of one job and that must survive a generation: parameters, the
// optimizer's moments, and the step, which is also the data cursor and the schedule's position.
// Every rank holds the same. Not thread-safe, except step() and clean().
//
// State is dirty from the first to the last write of an update or a restore, and dirty state is no
// donor: writers call MarkDirty, write, then MarkClean with the step that the state now stands for.
class TrainingState {
 public:
  // All tensors, zero; dirty until Initialize or a restore: whoever joins a ring that trains
  // already is given its state and need not draw parameters first. `device` is "cpu" or "cuda" (the
  // current one). ResourceExhausted when memory does not suffice, InvalidArgument when the model
  // does not fit.
  static absl::StatusOr<std::unique_ptr<TrainingState>> Allocate(const JobConfig& config,
                                                                 const std::string& device);
  // Allocate and Initialize.
  static absl::StatusOr<std::unique_ptr<TrainingState>> Create(const JobConfig& config,
                                                               const std::string& device);
  // Step 0 with parameters from config.seed, whatever it held; clean.
  absl::Status Initialize();

  // Optimizer updates it contains.
  int64_t step() const { return step_.load(std::memory_order_acquire); }
  bool clean() const { return clean_.load(std::memory_order_acquire); }

  // StateDigest of parameters, moments and step; 0 when dirty. Reads all state once.
  uint64_t Digest() const;

  struct NamedTensor {
    std::string name;
    // Shares memory with the state: contiguous, fp32 (fp64 for FP64 jobs), on the state's device.
    at::Tensor tensor;
  };
  // In a fixed order: every parameter under its own name (see models/longnet_config.h), then its
  // moments as "optimizer.exp_avg.{name}" and "optimizer.exp_avg_sq.{name}". Writing to a parameter
  // needs MarkDirty before and MarkClean after.
  std::vector<NamedTensor> NamedTensors() const;
  // Only the parameters: what `init_from` loads and generation needs.
  std::vector<NamedTensor> Weights() const;

  void MarkDirty();
  // Also refreshes the compute copy of the parameters (bf16). REQUIRES: step >= 0.
  void MarkClean(int64_t step);

  // The whole buffers, for reduction, optimizer, copies: 1-D, layout().size() elements.
  const at::Tensor& parameters() const { return parameters_; }
  const at::Tensor& exp_avg() const { return exp_avg_; }
  const at::Tensor& exp_avg_sq() const { return exp_avg_sq_; }
  const models::ParameterLayout& layout() const { return layout_; }
  const models::LongNet& model() const { return model_; }
  // What passes over the model compute with, in layout order: the parameters, or their bf16 copy.
  const std::vector<at::Tensor>& compute_parameters() const { return compute_views_; }

 private:
  TrainingState(models::LongNet model, models::ParameterLayout layout, uint64_t seed)
      : model_(std::move(model)), layout_(std::move(layout)), seed_(seed) {}

  models::LongNet model_;
  models::ParameterLayout layout_;
  const uint64_t seed_;
  at::Tensor parameters_;
  at::Tensor exp_avg_;
  at::Tensor exp_avg_sq_;
  at::Tensor compute_;
  std::vector<at::Tensor> compute_views_;
  std::atomic<int64_t> step_{0};
  std::atomic<bool> clean_{false};
};

}  // namespace ringmaster::worker
