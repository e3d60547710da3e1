#include "worker/train/training_state.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/torch_status.h"
#include "worker/train/state_digest.h"

namespace ringmaster::worker {

absl::StatusOr<std::unique_ptr<TrainingState>> TrainingState::Allocate(const JobConfig& config,
                                                                       const std::string& device) {
  ASSIGN_OR_RETURN(models::LongNet model, models::LongNet::Create(config.model));
  models::ParameterLayout layout(models::ParameterSpecs(config.model));
  std::unique_ptr<TrainingState> state(
      new TrainingState(std::move(model), std::move(layout), config.seed));
  RETURN_IF_ERROR(CatchTorch(absl::StrCat("building the model on ", device), [&] {
    const at::ScalarType dtype = config.precision == Precision::kFp64 ? at::kDouble : at::kFloat;
    const at::TensorOptions options = at::TensorOptions(at::Device(device)).dtype(dtype);
    const int64_t size = state->layout_.size();
    state->parameters_ = at::zeros({size}, options);
    state->exp_avg_ = at::zeros({size}, options);
    state->exp_avg_sq_ = at::zeros({size}, options);
    state->compute_ = config.precision == Precision::kBf16
                          ? at::empty({size}, options.dtype(at::kBFloat16))
                          : state->parameters_;
    state->compute_views_ = state->layout_.Views(state->compute_);
    return absl::OkStatus();
  }));
  return state;
}

absl::StatusOr<std::unique_ptr<TrainingState>> TrainingState::Create(const JobConfig& config,
                                                                     const std::string& device) {
  ASSIGN_OR_RETURN(std::unique_ptr<TrainingState> state, Allocate(config, device));
  RETURN_IF_ERROR(state->Initialize());
  return state;
}

absl::Status TrainingState::Initialize() {
  MarkDirty();
  return CatchTorch("initialising the parameters", [this] {
    const at::NoGradGuard no_grad;
    // On the CPU: the same bits on every device.
    const at::Tensor initial =
        at::zeros({layout_.size()}, at::TensorOptions().dtype(parameters_.scalar_type()));
    models::InitializeParameters(layout_.specs(), seed_, layout_.Views(initial));
    parameters_.copy_(initial);
    exp_avg_.zero_();
    exp_avg_sq_.zero_();
    MarkClean(0);
    return absl::OkStatus();
  });
}

uint64_t TrainingState::Digest() const {
  if (!clean()) {
    return 0;
  }
  return StateDigest({parameters_, exp_avg_, exp_avg_sq_}, step());
}

std::vector<TrainingState::NamedTensor> TrainingState::Weights() const {
  const std::vector<at::Tensor> views = layout_.Views(parameters_);
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < views.size(); ++i) {
    tensors.push_back({layout_.specs()[i].name, views[i]});
  }
  return tensors;
}

std::vector<TrainingState::NamedTensor> TrainingState::NamedTensors() const {
  std::vector<NamedTensor> tensors = Weights();
  const std::pair<const char*, const at::Tensor&> moments[] = {
      {"optimizer.exp_avg.", exp_avg_}, {"optimizer.exp_avg_sq.", exp_avg_sq_}};
  for (const auto& [prefix, flat] : moments) {
    const std::vector<at::Tensor> views = layout_.Views(flat);
    for (size_t i = 0; i < views.size(); ++i) {
      tensors.push_back({prefix + layout_.specs()[i].name, views[i]});
    }
  }
  return tensors;
}

void TrainingState::MarkDirty() { clean_.store(false, std::memory_order_release); }

void TrainingState::MarkClean(int64_t step) {
  if (!compute_.is_same(parameters_)) {
    const at::NoGradGuard no_grad;
    compute_.copy_(parameters_);
  }
  step_.store(step, std::memory_order_release);
  clean_.store(true, std::memory_order_release);
}

}  // namespace ringmaster::worker
