#include "worker/train/optimizer.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/split.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <vector>

namespace ringmaster::worker {
namespace {

struct Slice {
  int64_t begin;
  int64_t count;
  double weight_decay;
};

// Of 8 bytes each: what is summed in fp64 is copied to it first.
constexpr int64_t kNormPiece = int64_t{1} << 22;

}  // namespace

double GradientNorm(const at::Tensor& gradients) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> norms;
  for (const at::Tensor& piece : gradients.split(kNormPiece)) {
    norms.push_back(at::linalg_vector_norm(piece, 2, {}, false, at::kDouble));
  }
  return at::linalg_vector_norm(at::stack(norms)).item<double>();
}

void ApplyAdamW(const OptimizerConfig& config, double learning_rate, double grad_norm,
                const at::Tensor& gradients, const FaultPoint& fault, TrainingState& state) {
  const at::NoGradGuard no_grad;
  const int64_t step = state.step();
  if (config.clip_norm > 0 && grad_norm > config.clip_norm) {
    gradients.mul_(config.clip_norm / grad_norm);
  }
  const at::Tensor update_number =
      at::scalar_tensor(static_cast<double>(step + 1), gradients.options().dtype(at::kFloat));
  const int64_t decayed = state.layout().decayed_size();
  const Slice slices[] = {{0, decayed, config.weight_decay},
                          {decayed, state.layout().size() - decayed, 0}};
  state.MarkDirty();
  for (const Slice& slice : slices) {
    const auto part = [&](const at::Tensor& flat) {
      return flat.narrow(0, slice.begin, slice.count);
    };
    at::_fused_adamw_({part(state.parameters())}, {part(gradients)}, {part(state.exp_avg())},
                      {part(state.exp_avg_sq())}, {}, {update_number}, learning_rate, config.beta1,
                      config.beta2, slice.weight_decay, config.epsilon, /*amsgrad=*/false,
                      /*maximize=*/false);
    fault.Reach(step, "update");
  }
  state.MarkClean(step + 1);
}

}  // namespace ringmaster::worker
