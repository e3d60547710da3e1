#pragma once

#include "absl/status/statusor.h"
#include "attention/plan/options.h"
#include "coordinator/core/presets.h"
#include "coordinator/core/violations.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::coordinator {

// Fills in every default of `spec` and checks every rule that needs nothing but the spec: required
// fields, ranges, and the HARD rules between sizes. What costs but is allowed is the estimate's
// business. Left alone: an empty `directory` (it depends on the job's name), and, when no device is
// asked for, `resources.device` and `precision`, which the first placement decides.
void ResolveSpec(v1::TrainingJobSpec* spec, Violations* violations);

// The parts of ResolveSpec that concern the model, and of those the ones that concern its
// attention; `preset` is the model's, null when it has none.
void ResolveModel(v1::TrainingJobSpec* spec, Violations* violations);
void ResolveAttention(const ModelPreset* preset, v1::TrainingJobSpec* spec, Violations* violations);

// What priorities are at most, and at least, below zero.
inline constexpr int32_t kPriorityMax = 1000;
void CheckPriority(absl::string_view field, int32_t priority, Violations* violations);

// Sets the device and, unless the user chose one, its default precision.
void FixDevice(v1::Device device, v1::TrainingJobSpec* spec);

// What attention is asked to compute: makes the mask, if it has one. REQUIRES: `spec` is resolved.
absl::StatusOr<attention::AttentionPattern> PatternOf(const v1::TrainingJobSpec& spec);
// How many bits the mask has: what making and looking through it costs. 0 without a mask. REQUIRES:
// `spec` is resolved.
double MaskBits(const v1::TrainingJobSpec& spec);

// An absolute path without "." or ".." components and without control characters.
bool IsCleanAbsolutePath(const std::string& path);

}  // namespace ringmaster::coordinator
