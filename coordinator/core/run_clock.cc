#include "coordinator/core/run_clock.h"

#include <algorithm>

#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

// What is not stored is forgotten with the coordinator, and steps may take longer than it lives.
constexpr absl::Duration kStoredEvery = absl::Minutes(1);

absl::Duration Left(const Job& job) {
  if (!job.spec().has_max_runtime()) return absl::InfiniteDuration();
  return FromProto(job.spec().max_runtime()) - FromProto(job.status().run_duration());
}

}  // namespace

void StartRunClock(State& state, Job& job) {
  job.run_counted = state.now;
  job.run_since = std::min(job.run_since, state.now);
  WindRunClock(state, job);
}

void StopRunClock(State& state, Job& job) {
  CountRunTime(state, job);
  state.timers.Cancel(TimerKind::kRunClock, job.name());
}

void CountRunTime(const State& state, Job& job) {
  if (job.status().state() != v1::TrainingJobStatus::RUNNING) return;
  google::protobuf::Duration* sum = job.mutable_status()->mutable_run_duration();
  *sum = ToProto(FromProto(*sum) + (state.now - job.run_counted));
  job.run_counted = state.now;
}

void WindRunClock(State& state, const Job& job) {
  state.timers.Set(TimerKind::kRunClock, job.name(),
                   state.now + std::clamp(Left(job), absl::ZeroDuration(), kStoredEvery));
}

bool IsOverTime(const Job& job) { return Left(job) <= absl::ZeroDuration(); }

}  // namespace ringmaster::coordinator
