#include "coordinator/core/episodes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/core/times.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kEpisodesKept = 100;
constexpr size_t kMessageMax = 2000;

// Time since the last phase's end, which now ends a phase too.
int64_t EndPhase(State& state, Job& job) {
  const int64_t ms = ElapsedMs(job.phase_end, state.now);
  job.phase_end = state.now;
  return ms;
}

}  // namespace

v1::RecoveryEpisode* OpenEpisodeOf(Job& job) {
  auto* episodes = job.mutable_status()->mutable_episodes();
  if (episodes->empty() || episodes->rbegin()->finished()) return nullptr;
  return &*episodes->rbegin();
}

int64_t FailedAttempts(Job& job) {
  const v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  return episode == nullptr ? 0 : job.generation() - episode->from_generation();
}

void BeginEpisode(State& state, Job& job, v1::RecoveryEpisode::Cause cause,
                  const std::string& message, std::optional<absl::Time> fault_time) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode != nullptr) {
    if (episode->message().size() < kMessageMax) {
      episode->mutable_message()->append(absl::StrCat("; then: ", message));
    }
    if (episode->has_abort_ms()) {
      episode->set_form_ms(episode->form_ms() + EndPhase(state, job));
    }
    job.phase_end = state.now;
    return;
  }
  v1::TrainingJobStatus* status = job.mutable_status();
  if (status->episodes_size() == kEpisodesKept) {
    status->mutable_episodes()->DeleteSubrange(0, 1);
  }
  status->set_episodes_count(status->episodes_count() + 1);
  episode = status->add_episodes();
  episode->set_from_generation(job.generation());
  episode->set_cause(cause);
  episode->set_message(message);
  *episode->mutable_detect_time() = ToProto(state.now);
  if (fault_time.has_value()) episode->set_detect_ms(ElapsedMs(*fault_time, state.now));
  job.phase_end = state.now;
}

void ExplainEpisode(Job& job, v1::RecoveryEpisode::Cause cause, const std::string& message,
                    std::optional<absl::Time> fault_time) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  const bool vague =
      episode != nullptr && (episode->cause() == v1::RecoveryEpisode::COMMUNICATION ||
                             episode->cause() == v1::RecoveryEpisode::FORM_FAILED);
  // An echo explains nothing; without end they would make the message grow without end.
  if (!vague || cause == episode->cause() || cause == v1::RecoveryEpisode::COMMUNICATION) return;
  episode->set_cause(cause);
  episode->set_message(absl::StrCat(message, "; seen first as: ", episode->message()));
  if (fault_time.has_value()) {
    episode->set_detect_ms(ElapsedMs(*fault_time, FromProto(episode->detect_time())));
  }
}

void AddLostWorker(Job& job, const std::string& worker) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) return;
  const auto& lost = episode->lost_workers();
  if (std::find(lost.begin(), lost.end(), worker) == lost.end()) episode->add_lost_workers(worker);
}

void AddJoinedWorker(Job& job, const std::string& worker) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) return;
  const auto& lost = episode->lost_workers();
  const bool restarted = std::find(lost.begin(), lost.end(), worker) != lost.end();
  episode->add_joined_workers(absl::StrCat(worker, restarted ? " (restarted)" : " (spare)"));
}

void MarkAborted(State& state, Job& job) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) return;
  episode->set_abort_ms(episode->abort_ms() + EndPhase(state, job));
}

void MarkFormed(State& state, Job& job, int64_t step, int64_t restore_ms) {
  const int64_t lost = std::max<int64_t>(0, job.status().progress().step() - step);
  state.counters.lost_steps += lost;
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) {
    // Of a ring that was given up for good, and its job went to the queue or was paused.
    auto* episodes = job.mutable_status()->mutable_episodes();
    if (lost > 0 && !episodes->empty()) {
      v1::RecoveryEpisode& last = *episodes->rbegin();
      last.set_lost_steps(last.lost_steps() + lost);
    }
    return;
  }
  const int64_t ms = EndPhase(state, job);
  const int64_t restored = std::min(restore_ms, ms);
  episode->set_form_ms(episode->form_ms() + ms - restored);
  episode->set_restore_ms(episode->restore_ms() + restored);
  episode->set_to_generation(job.generation());
  episode->set_restore(job.plan.source());
  episode->set_lost_steps(episode->lost_steps() + lost);
}

void MarkFirstStep(State& state, Job& job) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) return;
  episode->set_first_step_ms(EndPhase(state, job));
  CloseEpisode(state, job);
}

void CloseEpisode(State& state, Job& job) {
  v1::RecoveryEpisode* episode = OpenEpisodeOf(job);
  if (episode == nullptr) return;
  episode->set_finished(true);
  state.out.episodes.push_back({job.name(), *episode});
}

}  // namespace ringmaster::coordinator
