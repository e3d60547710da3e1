#include "worker/driver/held_job.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/passes.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "spdlog/spdlog.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/restore.h"
#include "worker/comm/cuda_plugin.h"
#include "worker/data/byte_corpus.h"
#include "worker/torch_status.h"
#include "worker/train/state_transfer.h"

namespace ringmaster::worker {
namespace {

absl::StatusOr<std::string> DescribeAttention(const JobConfig& config, const models::LongNet& model,
                                              const std::string& device) {
  const at::ScalarType dtype = config.precision == Precision::kBf16   ? at::kBFloat16
                               : config.precision == Precision::kFp64 ? at::kDouble
                                                                      : at::kFloat;
  const at::Tensor q = at::empty({1}, at::TensorOptions(at::Device(device)).dtype(dtype))
                           .expand({config.micro_sequences, config.sequence_length,
                                    config.model.heads, config.model.head_dim()});
  ASSIGN_OR_RETURN(const attention::AttentionPattern pattern,
                   model.Pattern(config.sequence_length));
  return attention::DescribeExecutor(q, pattern, config.sequence_length,
                                     config.attention_dropout > 0);
}

}  // namespace

absl::Status HeldJob::WarmUp() const {
  if (device_ != "cuda") {
    return absl::OkStatus();
  }
  const absl::Time start = SteadyNow();
  RETURN_IF_ERROR(CatchTorch(absl::StrCat("warming up ", device_), [this] {
    constexpr int64_t kSize = 64;
    const at::NoGradGuard no_grad;
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor ones =
          at::ones({kSize, kSize}, at::TensorOptions(at::Device(device_)).dtype(dtype));
      // A power of two: exact in both. Reading it waits for the device.
      const double sum = at::matmul(ones, ones).sum().item<double>();
      if (sum != kSize * kSize * kSize) {
        return absl::InternalError(absl::StrCat("the sum of a product of ones is ", sum));
      }
    }
    return absl::OkStatus();
  }));
  SPDLOG_INFO("{} is warm after {}", device_, absl::FormatDuration(SteadyNow() - start));
  return absl::OkStatus();
}

void HeldJob::TrimMemory() const {
  if (device_ != "cuda") {
    return;
  }
  const auto plugin = CudaPlugin::Open();
  if (absl::Status status = plugin.ok() ? (*plugin)->EmptyCache() : plugin.status(); !status.ok()) {
    SPDLOG_WARN("cached device memory was not given back: {}", status.ToString());
  }
}

absl::Status HeldJob::Adopt(const v1::FormRing& form) {
  if (uid_ == form.ring().training_job_uid()) {
    return absl::OkStatus();
  }
  Drop();
  ASSIGN_OR_RETURN(config_, JobConfigFromSpec(form.spec()));
  uid_ = form.ring().training_job_uid();
  return absl::OkStatus();
}

void HeldJob::Drop() {
  uid_.clear();
  source_.reset();
  state_.reset();
  restored_ = false;
  digest_.reset();
}

absl::Status HeldJob::Build(absl::FunctionRef<bool()> cancelled) {
  if (!source_.has_value()) {
    ASSIGN_OR_RETURN(ByteCorpus corpus, ByteCorpus::Open(config_.data_paths, cancelled));
    ASSIGN_OR_RETURN(SequenceSource source,
                     SequenceSource::Create(std::make_shared<const ByteCorpus>(std::move(corpus)),
                                            {.sequence_length = config_.sequence_length,
                                             .validation_fraction = config_.validation_fraction,
                                             .seed = config_.data_seed,
                                             .sequences_per_step = config_.global_sequences}));
    source_.emplace(std::move(source));
  }
  if (state_ != nullptr) {
    return absl::OkStatus();
  }
  const absl::Time start = SteadyNow();
  ASSIGN_OR_RETURN(state_, TrainingState::Allocate(config_, device_));
  SPDLOG_INFO("built the model on {} in {}: {} parameters", device_,
              absl::FormatDuration(SteadyNow() - start), state_->layout().parameters());
  return CatchTorch("looking for attention's kernels", [this] {
    ASSIGN_OR_RETURN(const std::string executor,
                     DescribeAttention(config_, state_->model(), device_));
    SPDLOG_INFO("attention by {}", executor);
    return absl::OkStatus();
  });
}

absl::Status HeldJob::Examine() {
  if (state_ == nullptr || !restored_ || !state_->clean() || digest_.has_value()) {
    return absl::OkStatus();
  }
  return CatchTorch("reading the state", [this] {
    digest_ = state_->Digest();
    return absl::OkStatus();
  });
}

v1::HeldState HeldJob::Report() const {
  v1::HeldState held;
  if (state_ == nullptr || !restored_) {
    return held;
  }
  held.set_present(true);
  held.set_step(state_->step());
  held.set_clean(state_->clean() && digest_.has_value());
  held.set_digest(held.clean() ? *digest_ : 0);
  return held;
}

absl::Status HeldJob::Restore(const v1::RestorePlan& plan, const v1::TrainingJobSpec& spec,
                              int rank, Communicator& communicator,
                              absl::FunctionRef<bool()> cancelled) {
  switch (plan.source()) {
    case v1::RecoveryEpisode::FRESH:
      RETURN_IF_ERROR(RestoreFresh(plan, spec, cancelled));
      break;
    case v1::RecoveryEpisode::OWN:
      if (!restored_) {
        return absl::FailedPreconditionError("told to go on from its own state, but holds none");
      }
      break;
    case v1::RecoveryEpisode::PEER: {
      const std::vector<int> receivers(plan.receiver_ranks().begin(), plan.receiver_ranks().end());
      const bool receives = std::find(receivers.begin(), receivers.end(), rank) != receivers.end();
      if (receives) {
        Touch();
      }
      RETURN_IF_ERROR(
          CopyStateFromPeer(*state_, communicator, plan.donor_rank(), receivers, plan.step()));
      break;
    }
    case v1::RecoveryEpisode::CHECKPOINT:
      Touch();
      RETURN_IF_ERROR(RestoreState(plan.checkpoint(), *state_, cancelled));
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("unknown source ", plan.source(), " in the restore plan"));
  }
  restored_ = true;
  return Examine();
}

absl::Status HeldJob::RestoreFresh(const v1::RestorePlan& plan, const v1::TrainingJobSpec& spec,
                                   absl::FunctionRef<bool()> cancelled) {
  Touch();
  // Clean from here on, but without init_from's weights it is not the job's.
  restored_ = false;
  RETURN_IF_ERROR(state_->Initialize());
  if (!spec.has_init_from()) {
    return absl::OkStatus();
  }
  v1::Checkpoint checkpoint = plan.checkpoint();
  if (checkpoint.shards().empty()) {
    ASSIGN_OR_RETURN(const Manifest manifest, ReadManifestFile(spec.init_from()));
    checkpoint = manifest.checkpoint;
  }
  return RestoreWeights(checkpoint, *state_, cancelled);
}

}  // namespace ringmaster::worker
