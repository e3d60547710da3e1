#include "coordinator/core/restore_plan.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>

namespace ringmaster::coordinator {
namespace {

bool Donates(const v1::HeldState& held) { return held.present() && held.clean(); }

struct Memory {
  int64_t step = 0;
  uint64_t digest = 0;
  int donor = 0;
  bool agreed = true;
};

// The best state that any rank holds.
std::optional<Memory> BestMemory(const std::vector<v1::HeldState>& held) {
  std::optional<int64_t> step;
  for (const v1::HeldState& state : held) {
    if (Donates(state) && (!step.has_value() || state.step() > *step)) step = state.step();
  }
  if (!step.has_value()) return std::nullopt;
  std::map<uint64_t, int> votes;
  for (const v1::HeldState& state : held) {
    if (Donates(state) && state.step() == *step) ++votes[state.digest()];
  }
  std::optional<Memory> best;
  for (size_t rank = 0; rank < held.size(); ++rank) {
    const v1::HeldState& state = held[rank];
    if (!Donates(state) || state.step() != *step) continue;
    if (!best.has_value() || votes[state.digest()] > votes[best->digest]) {
      best = Memory{*step, state.digest(), static_cast<int>(rank), votes.size() == 1};
    }
  }
  return best;
}

v1::RestorePlan FromMemory(const std::vector<v1::HeldState>& held, const Memory& memory) {
  v1::RestorePlan plan;
  plan.set_step(memory.step);
  plan.set_digest(memory.digest);
  plan.set_donor_rank(memory.donor);
  for (size_t rank = 0; rank < held.size(); ++rank) {
    const bool has = Donates(held[rank]) && held[rank].step() == memory.step &&
                     held[rank].digest() == memory.digest;
    if (!has) plan.add_receiver_ranks(static_cast<int32_t>(rank));
  }
  plan.set_source(plan.receiver_ranks().empty() ? v1::RecoveryEpisode::OWN
                                                : v1::RecoveryEpisode::PEER);
  return plan;
}

v1::RestorePlan FromCheckpoint(const v1::Checkpoint& checkpoint) {
  v1::RestorePlan plan;
  plan.set_source(v1::RecoveryEpisode::CHECKPOINT);
  plan.set_step(checkpoint.step());
  *plan.mutable_checkpoint() = checkpoint;
  return plan;
}

}  // namespace

v1::RestorePlan PlanRestore(const RestoreSources& sources) {
  const v1::Checkpoint* newest = sources.resume;
  for (const v1::Checkpoint& checkpoint : sources.checkpoints) {
    if (newest == nullptr || checkpoint.step() > newest->step()) newest = &checkpoint;
  }
  const std::optional<Memory> memory = BestMemory(sources.held);
  if (memory.has_value()) {
    const bool newer_on_disk = newest != nullptr && newest->step() > memory->step;
    const bool corrupt = newest != nullptr && !memory->agreed;
    if (!newer_on_disk && !corrupt) return FromMemory(sources.held, *memory);
  }
  if (newest != nullptr) return FromCheckpoint(*newest);
  v1::RestorePlan plan;
  plan.set_source(v1::RecoveryEpisode::FRESH);
  if (sources.init != nullptr) *plan.mutable_checkpoint() = *sources.init;
  return plan;
}

}  // namespace ringmaster::coordinator
