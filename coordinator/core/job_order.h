#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/core/job_field.h"

namespace ringmaster::coordinator {

// An order of jobs as AIP-132 has it: fields, each with ` desc` for the greatest first, separated
// by commas. Immutable; thread-safe.
class JobOrder {
 public:
  // InvalidArgument naming the field `order_by`. An empty text is an order without fields.
  static absl::StatusOr<JobOrder> Parse(absl::string_view text);

  bool empty() const { return fields_.empty(); }

  // Bytes that compare as the jobs do. What is unset is less than what is set; jobs that are alike
  // come newest first, and those of one moment by uid: no two jobs have one key.
  std::string Key(const v1::TrainingJob& job) const;

 private:
  std::vector<std::pair<JobField, bool>> fields_;  // with whether it descends
};

}  // namespace ringmaster::coordinator
