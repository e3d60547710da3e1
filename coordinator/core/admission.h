#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"

namespace ringmaster::coordinator {

// Everything that decides whether a request becomes a job: names, labels, spec, and what the
// checkpoint that it starts from demands. Returns the record as it would be stored, but for its
// times; `uid` becomes part of the default directory, so that no job finds another's files there.
// Touches nothing.
absl::StatusOr<store::JobRecord> Admit(const State& state,
                                       const v1::CreateTrainingJobRequest& request,
                                       const std::string& project, const std::string& id,
                                       const std::string& uid,
                                       const std::optional<absl::StatusOr<ManifestFile>>& manifest);

// Fields of `now` that differ from `before`, "optimizer.lr: 0.0006 -> 0.0003"; where a job may be
// placed, starts from and keeps its files does not count.
std::vector<std::string> SpecChanges(const v1::TrainingJobSpec& before,
                                     const v1::TrainingJobSpec& now);

}  // namespace ringmaster::coordinator
