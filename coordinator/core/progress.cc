#include <algorithm>
#include <numeric>

#include "coordinator/core/blame.h"
#include "coordinator/core/episodes.h"
#include "coordinator/core/generation.h"
#include "coordinator/core/journal.h"
#include "coordinator/core/times.h"

// What rank 0 says about steps.
namespace ringmaster::coordinator {
namespace {

// Steps that the rate is averaged over.
constexpr size_t kPaceSteps = 20;

void SetRate(Job& job) {
  const double seconds = std::accumulate(job.pace.begin(), job.pace.end(), 0.0);
  v1::Progress* progress = job.mutable_status()->mutable_progress();
  if (seconds <= 0) return;
  const double tokens_per_step = static_cast<double>(job.spec().batch().global_sequences()) *
                                 static_cast<double>(job.spec().data().sequence_length());
  progress->set_tokens_per_second(static_cast<double>(job.pace.size()) * tokens_per_step / seconds);
  if (progress->step() < 2) return;
  const double left = static_cast<double>(job.spec().steps() - progress->step());
  *progress->mutable_remaining() =
      ToProto(absl::Seconds(left * seconds / static_cast<double>(job.pace.size())));
}

}  // namespace

void OnStepsDone(State& state, Job& job, const v1::StepsDone& done) {
  const bool started = job.record.stage() == store::RING_STAGE_STARTED;
  // Sent, or on the way, when the ring was given up: agreed on all the same.
  if (!started && job.record.stage() != store::RING_STAGE_ABORTING) return;
  v1::Progress* progress = job.mutable_status()->mutable_progress();
  bool advanced = false;
  for (const v1::StepRecord& record : done.records()) {
    if (record.has_validation_loss()) {
      progress->set_validation_loss(record.validation_loss());
    }
    if (record.step() < progress->step()) continue;
    // Told again, after a re-attach or by the generation that goes on from it.
    const bool again = record.step() == progress->step();
    job.SetStep(record.step());
    progress->set_loss(record.loss());
    progress->set_grad_norm(record.grad_norm());
    progress->set_learning_rate(record.learning_rate());
    *progress->mutable_step_time() = record.has_time() ? record.time() : ToProto(state.now);
    if (again) continue;
    advanced = true;
    job.pace.push_back(record.seconds());
    if (job.pace.size() > kPaceSteps) job.pace.pop_front();
  }
  if (!advanced) return;
  const bool first = started && NoteProven(job);
  if (progress->step() > job.record.furthest_step()) {
    job.record.set_furthest_step(progress->step());
    if (started) job.record.clear_recoveries_counted();
  }
  progress->set_exchanged_bytes_per_step(done.exchanged_bytes());
  progress->set_planned_bytes_per_step(done.planned_bytes());
  SetRate(job);
  if (started) job.last_step = state.now;
  if (started) MarkFirstStep(state, job);
  if (first) {
    Store(state, job);
  } else {
    StoreProgress(state, job);
  }
}

}  // namespace ringmaster::coordinator
