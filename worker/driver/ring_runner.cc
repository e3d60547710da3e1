#include "worker/driver/ring_runner.h"

#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "worker/checkpoint/checkpoint_files.h"
#include "worker/checkpoint/job_directory.h"
#include "worker/driver/step_log.h"

namespace ringmaster::worker {
namespace {

bool IsSameRing(const v1::RingRef& one, const v1::RingRef& other) {
  return one.training_job_uid() == other.training_job_uid() &&
         one.generation() == other.generation();
}

}  // namespace

RingRunner::RingRunner(const std::string& device, RingContext context)
    : context_(std::move(context)),
      held_(device),
      writer_([this](v1::ShardWritten report, absl::Duration duration) {
        context_.metrics->OnShard(report, duration);
        OnShardWritten(std::move(report));
      }) {
  // The thread that will train, beside the first attachment to the coordinator.
  Train([this] {
    if (absl::Status status = held_.WarmUp(); !status.ok()) {
      context_.die(absl::StrCat("the device is lost: ", status.message()));
    }
  });
}

RingRunner::~RingRunner() {
  if (const auto current = run(); current != nullptr) {
    current->Cancel("the worker ends");
    Train([current] { current->Finish(); });
  }
}

void RingRunner::Train(std::function<void()> task) {
  trainer_.Add([this, task = std::move(task)] {
    task();
    context_.metrics->SampleDeviceMemory();
  });
}

std::shared_ptr<RingRun> RingRunner::run() {
  absl::MutexLock lock(&mutex_);
  return run_;
}

void RingRunner::Do(const OpenTransport& action) {
  const auto next = std::make_shared<RingRun>(action.form, &context_, &held_, &writer_, &files_);
  {
    absl::MutexLock lock(&mutex_);
    run_ = next;
  }
  Train([next] { next->Open(); });
}

void RingRunner::Do(const ConnectAndRestore& action) {
  Train([current = run(), connect = action.connect] { current->Connect(connect); });
}

void RingRunner::Do(const RunSteps& action) {
  const auto current = run();
  Train([current] { current->Run(); });
  if (current->form().ring().rank() == 0) {
    // Not on the trainer's thread: peers wait for its steps, and the disk may be slow.
    files_.Add([this, form = current->form(), start = action.start] { Sweep(form, start); });
  }
}

void RingRunner::Do(const AbandonRing& action) {
  const auto current = run();
  // First of all: peers wait for it.
  current->Cancel(action.reason);
  SPDLOG_INFO("ring generation {}: giving up: {}", action.ring.generation(), action.reason);
  Train([current] { current->Finish(); });
}

void RingRunner::Do(const StopAfterStep&) { run()->RequestStop(Stop::kLeave); }

void RingRunner::Do(const FinishAfterStep&) { run()->RequestStop(Stop::kFinish); }

void RingRunner::Do(const DropState& action) {
  SPDLOG_INFO("forgetting the state of job {}", action.training_job_uid);
  std::shared_ptr<RingRun> last;
  {
    absl::MutexLock lock(&mutex_);
    last = std::move(run_);
  }
  Train([this, last = std::move(last)]() mutable {
    last.reset();
    held_.Drop();
    if (context_.job_log != nullptr) {
      context_.job_log->Close();
    }
  });
}

void RingRunner::Do(const WriteManifest& action) {
  const auto current = run();
  const Manifest manifest{.checkpoint = action.checkpoint,
                          .training_job = current->form().ring().training_job(),
                          .training_job_uid = current->form().ring().training_job_uid(),
                          .spec = current->form().spec()};
  files_.Add([this, manifest, directory = action.job_directory,
              generation = current->form().ring().generation()] {
    // Every generation is told of all checkpoints again.
    if (!MayWriteIn(directory) || HasManifestFile(manifest)) {
      return;
    }
    // The records that lead to this checkpoint should be as durable as it is.
    if (auto log = StepLog::Open(directory, manifest.training_job_uid); log.ok()) {
      (*log)->Sync().IgnoreError();
    }
    if (absl::Status status =
            WriteManifestFile(directory, generation, context_.incarnation, manifest);
        !status.ok()) {
      SPDLOG_ERROR("manifest of step {}: {}", manifest.checkpoint.step(), status.ToString());
    } else {
      SPDLOG_INFO("checkpoint of step {} is committed: {}", manifest.checkpoint.step(),
                  manifest.checkpoint.directory());
    }
  });
}

void RingRunner::Do(const DeletePaths& action) {
  files_.Add([this, action] {
    if (!MayWriteIn(action.job_directory)) {
      return;
    }
    const std::vector<std::string> paths(action.files.paths().begin(), action.files.paths().end());
    const std::vector<std::string> done = DeleteCheckpointFiles(action.job_directory, paths);
    if (done.empty()) {
      return;
    }
    PathsDeleted deleted;
    *deleted.report.mutable_ring() = action.files.ring();
    *deleted.report.mutable_paths() = {done.begin(), done.end()};
    context_.post(std::move(deleted));
  });
}

void RingRunner::Sweep(const v1::FormRing& form, const v1::StartSteps& start) {
  if (!MayWriteIn(form.directory())) {
    return;
  }
  // A disk that hung may let this run when another job has the directory, whose generations are
  // lower.
  SweepTemporaryFiles(form.directory(), form.ring().generation(), [this, &form] {
    const auto current = run();
    return current != nullptr && IsSameRing(current->form().ring(), form.ring());
  });
  if (start.has_existing_checkpoints()) {
    SweepShards(form.directory(), form.ring(), start.existing_checkpoints());
  }
}

// A job whose directory was refused may still be told of files.
bool RingRunner::MayWriteIn(const std::string& job_directory) const {
  const absl::Status status = CheckJobDirectory(job_directory, context_.shared_directory);
  if (!status.ok()) {
    SPDLOG_ERROR("its files are left alone: {}", status.ToString());
  }
  return status.ok();
}

void RingRunner::OnShardWritten(v1::ShardWritten report) {
  const auto current = run();
  const bool wanted = current != nullptr && !current->cancelled() &&
                      IsSameRing(current->form().ring(), report.ring());
  if (wanted) {
    current->OnShard(report);
    context_.post(ShardDone{std::move(report)});
  } else if (report.has_shard()) {
    // The session core would drop the report, and nobody would ever delete the file.
    unlink(report.shard().path().c_str());
  }
}

}  // namespace ringmaster::worker
