#include "coordinator/core/faults.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/checkpoints.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kTextMax = 2000;
constexpr int kRestoreAttemptsMax = 8;
// The same kind of fault, this often, without a step in between.
constexpr int64_t kRepeatedFaultMax = 5;

// A checkpoint that could not be read this often is not tried again. The pauses between the
// attempts grow: what is wrong with a file system for a moment costs no checkpoint. The loss of the
// state counts against the budget as well, and the older checkpoint is to be tried within it.
int RestoreAttempts(const Job& job) {
  return std::clamp(job.spec().recovery().episodes_max() - 1, 1, kRestoreAttemptsMax);
}

// A checkpoint of its own besides the planned one.
bool HasAnother(const State& state, const Job& job) {
  const std::vector<const v1::Checkpoint*> checkpoints = CheckpointsOf(state, job);
  return std::any_of(checkpoints.begin(), checkpoints.end(), [&](const v1::Checkpoint* one) {
    return one->directory() != job.plan.checkpoint().directory() && IsTrusted(job, *one);
  });
}

v1::FailureClass ClassOf(v1::Fault::Kind kind) {
  switch (kind) {
    case v1::Fault::OUT_OF_MEMORY_ERROR:
      return v1::OUT_OF_MEMORY;
    case v1::Fault::NOT_FINITE:
      return v1::NUMERIC;
    case v1::Fault::DATA_ERROR:
      return v1::DATA;
    case v1::Fault::CHECKPOINT_ERROR:
      return v1::CHECKPOINT_LOST;
    case v1::Fault::FORM_ERROR:
      return v1::USER_ERROR;
    default:
      return v1::INTERNAL;
  }
}

}  // namespace

bool MayRepeat(v1::Fault::Kind kind) {
  return kind == v1::Fault::OUT_OF_MEMORY_ERROR || kind == v1::Fault::EXCEPTION ||
         kind == v1::Fault::NOT_FINITE || kind == v1::Fault::DATA_ERROR;
}

std::string Shortened(const std::string& text) {
  if (text.size() <= kTextMax) return text;
  size_t end = kTextMax;
  // Not within a UTF-8 character.
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), " [and ", text.size() - end, " more bytes]");
}

v1::RecoveryEpisode::Cause CauseOf(v1::Fault::Kind kind) {
  switch (kind) {
    case v1::Fault::OUT_OF_MEMORY_ERROR:
      return v1::RecoveryEpisode::OUT_OF_MEMORY_FAULT;
    case v1::Fault::COMMUNICATION_ERROR:
      return v1::RecoveryEpisode::COMMUNICATION;
    case v1::Fault::FORM_ERROR:
    case v1::Fault::CHECKPOINT_ERROR:
      return v1::RecoveryEpisode::FORM_FAILED;
    default:
      return v1::RecoveryEpisode::STEP_EXCEPTION;
  }
}

void NoteUnreadable(const State& state, Job& job, const v1::Fault& fault, bool newcomer) {
  // A coordinator that has started again has no plan: the next one tries that checkpoint once more.
  if (fault.kind() != v1::Fault::CHECKPOINT_ERROR ||
      job.plan.source() != v1::RecoveryEpisode::CHECKPOINT) {
    return;
  }
  if (newcomer && !HasAnother(state, job)) return;
  int& failed = job.damaged[job.plan.checkpoint().directory()];
  if (fault.deterministic()) {
    failed = std::max(failed, RestoreAttempts(job));
  } else if (job.unreadable_in != job.generation()) {
    ++failed;
  }
  job.unreadable_in = job.generation();
}

FaultVerdict Judge(Job& job, const v1::Fault& fault) {
  // An older checkpoint may be sound: the next plan decides, and ends the job when there is none.
  if (fault.kind() == v1::Fault::CHECKPOINT_ERROR &&
      job.plan.source() != v1::RecoveryEpisode::FRESH) {
    return {};
  }
  if (fault.deterministic()) {
    return {.ends_job = true, .failure_class = ClassOf(fault.kind())};
  }
  if (!MayRepeat(fault.kind()) || job.record.repeated_fault_generation() == job.generation()) {
    return {};
  }
  const std::string& kind = v1::Fault::Kind_Name(fault.kind());
  const int64_t step = job.status().progress().step();
  const bool same = job.record.repeated_fault() == kind && job.record.repeated_fault_step() == step;
  const int64_t count = same ? job.record.repeated_fault_count() + 1 : 1;
  job.record.set_repeated_fault(kind);
  job.record.set_repeated_fault_step(step);
  job.record.set_repeated_fault_count(count);
  job.record.set_repeated_fault_generation(job.generation());
  if (count < kRepeatedFaultMax) return {};
  return {.ends_job = true,
          .failure_class = ClassOf(fault.kind()),
          .remark = absl::StrFormat(" (%d times in a row after step %d)", count, step)};
}

bool IsTrusted(const Job& job, const v1::Checkpoint& checkpoint) {
  const auto found = job.damaged.find(checkpoint.directory());
  return found == job.damaged.end() || found->second < RestoreAttempts(job);
}

}  // namespace ringmaster::coordinator
