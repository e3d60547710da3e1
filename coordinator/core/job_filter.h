#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::coordinator {

// Whether a job is among those that a filter asks for. Immutable; thread-safe.
using JobPredicate = std::function<bool(const v1::TrainingJob& job)>;

// Reads a filter as AIP-160 has them (https://google.aip.dev/160), of a job's singular fields:
//
//   filter      = factor { "AND" factor }
//   factor      = term { "OR" term }             OR binds more tightly than AND
//   term        = [ "NOT" | "-" ] ( restriction | "(" filter ")" )
//   restriction = field ("=" | "!=" | "<" | "<=" | ">" | ">=") value
//               | field ":*"                     the field is set; of those without a default
//               | "labels:" key                  the job has such a label
//
// Fields are those of job_field.h, values words or "quoted", with \ before a " or \ in quotes. A *
// at the begin or end of a value that a string is compared with stands for anything. What is unset
// is neither equal to a value nor different from it. An empty filter takes every job.
// InvalidArgument naming the field `filter`, the place in it and what is wanted there.
absl::StatusOr<JobPredicate> ParseJobFilter(absl::string_view text);

}  // namespace ringmaster::coordinator
