#pragma once

#include <optional>

#include "absl/strings/string_view.h"
#include "ringmaster/v1/job_service.pb.h"

// Lines of a job's steps.jsonl (docs/files.md).
namespace ringmaster::coordinator {

// Whether it looks like a whole line of this job. One that does not say whose it is, is.
bool IsStepLineOf(absl::string_view line, absl::string_view training_job_uid);

// Nothing when it is no record.
std::optional<v1::StepRecord> ParseStepLine(absl::string_view line);

}  // namespace ringmaster::coordinator
