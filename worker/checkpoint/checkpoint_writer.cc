#include "worker/checkpoint/checkpoint_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "base/wait_for.h"
#include "models/scalar_type.h"
#include "spdlog/spdlog.h"
#include "worker/checkpoint/shard_plan.h"
#include "worker/torch_status.h"

namespace ringmaster::worker {
namespace {

constexpr absl::Duration kAskInterval = absl::Milliseconds(10);

}  // namespace

CheckpointWriter::CheckpointWriter(std::function<void(v1::ShardWritten, absl::Duration)> done)
    : done_(std::move(done)), thread_([this] { Loop(); }) {}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

absl::Status CheckpointWriter::Begin(const ShardIdentity& identity,
                                     absl::Span<const TrainingState::NamedTensor> state) {
  std::vector<TensorSize> sizes;
  for (const auto& [name, tensor] : state) {
    if (tensor.scalar_type() != at::kFloat && tensor.scalar_type() != at::kDouble) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " is neither fp32 nor fp64"));
    }
    sizes.push_back({name, static_cast<int64_t>(tensor.nbytes())});
  }
  const std::vector<int> ranks = PlanShards(sizes, identity.world_size);
  {
    const std::lock_guard lock(mutex_);
    if (job_.has_value()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the checkpoint of step ", job_->identity.step, " is still being written"));
    }
  }
  Job job{.identity = identity};
  RETURN_IF_ERROR(CatchTorch("copying the state for a checkpoint", [&] {
    for (size_t i = 0; i < state.size(); ++i) {
      if (ranks[i] == identity.ring.rank()) {
        job.names.push_back(state[i].name);
        job.tensors.push_back(state[i].tensor.to(at::TensorOptions().device(at::kCPU),
                                                 /*non_blocking=*/false, /*copy=*/true));
      }
    }
    return absl::OkStatus();
  }));
  const std::lock_guard lock(mutex_);
  job_ = std::move(job);
  changed_.notify_all();
  return absl::OkStatus();
}

bool CheckpointWriter::AwaitIdle(absl::Duration patience, const std::function<bool()>& cancelled) {
  const absl::Time deadline = SteadyNow() + patience;
  const auto idle = [this] { return !job_.has_value(); };
  std::unique_lock lock(mutex_);
  while (!cancelled() && SteadyNow() < deadline) {
    if (WaitFor(changed_, lock, std::min(deadline - SteadyNow(), kAskInterval), idle)) {
      return true;
    }
  }
  return idle();
}

void CheckpointWriter::Loop() {
  while (true) {
    const Job* job = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || job_.has_value(); });
      if (!job_.has_value()) {
        return;
      }
      // Nobody else changes it until it is reset below.
      job = &*job_;
    }
    const absl::Time start = SteadyNow();
    v1::ShardWritten report = Write(*job);
    done_(std::move(report), SteadyNow() - start);
    const std::lock_guard lock(mutex_);
    job_.reset();
    changed_.notify_all();
  }
}

v1::ShardWritten CheckpointWriter::Write(const Job& job) {
  v1::ShardWritten report;
  *report.mutable_ring() = job.identity.ring;
  report.set_step(job.identity.step);
  std::vector<HostTensor> tensors;
  for (size_t i = 0; i < job.tensors.size(); ++i) {
    const at::Tensor& tensor = job.tensors[i];
    tensors.push_back({{.name = job.names[i],
                        .type = models::StoredType(tensor.scalar_type()),
                        .shape = {tensor.sizes().begin(), tensor.sizes().end()}},
                       {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()}});
  }
  const auto shard = WriteShard(job.identity, tensors);
  if (shard.ok()) {
    *report.mutable_shard() = *shard;
    SPDLOG_INFO("checkpoint of step {}: wrote {} ({} bytes)", job.identity.step, shard->path(),
                shard->bytes());
  } else {
    report.set_error(std::string(shard.status().message()));
    SPDLOG_ERROR("checkpoint of step {} failed: {}", job.identity.step, report.error());
  }
  return report;
}

}  // namespace ringmaster::worker
