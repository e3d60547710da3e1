#include "coordinator/core/core.h"

#include <utility>

#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

Core::Core(std::unique_ptr<State> state) : state_(std::move(state)) {}
Core::~Core() = default;

absl::StatusOr<std::unique_ptr<Core>> Core::Create(CoreOptions options, const StoredState&,
                                                   int64_t epoch, absl::Time now, uint64_t seed) {
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  state->epoch = epoch;
  state->ids = IdSource(seed ^ (static_cast<uint64_t>(epoch) << 32));
  state->now = now;
  return std::unique_ptr<Core>(new Core(std::move(state)));
}

absl::Time Core::NextTick() const { return state_->timers.Next(); }

const v1::TrainingJob* Core::FindJob(absl::string_view name) const {
  const Job* job = state_->FindJob(name);
  return job == nullptr ? nullptr : &job->record.job();
}

int64_t Core::resource_version() const { return (state_->epoch << 32) + state_->changes; }

}  // namespace ringmaster::coordinator
