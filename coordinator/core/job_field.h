#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::coordinator {

// What a field holds: nothing where it, or a message around it, is unset; whole numbers, numbers of
// enum values, 0 or 1, and nanoseconds (since 1970 in UTC, of times) as integers.
using JobFieldValue = std::variant<std::monostate, absl::int128, double, std::string>;

// A singular field of a job by its path: "labels.team", "status.progress.step". `status.` and
// `spec.` may be left out where no field of the job, or for `spec.` of its status, has that name.
// Immutable; thread-safe.
class JobField {
 public:
  // NotFound, in words for people, when there is no such field; InvalidArgument when it is a list
  // or a message, of which only parts can be meant.
  static absl::StatusOr<JobField> Find(absl::string_view path);

  JobFieldValue Of(const v1::TrainingJob& job) const;

  // Reads `text` as a value of the field: a name of an enum in any case, true or false, a time as
  // RFC 3339 has it, a duration as 1h30m. InvalidArgument saying what it should be.
  absl::StatusOr<JobFieldValue> Parse(absl::string_view text) const;

  // Whether values have an order that anybody could mean: numbers, times and durations.
  bool ordered() const;
  bool is_string() const;
  // Whether the field itself may be unset; else it has a default.
  bool can_be_unset() const;

 private:
  // From the job to the field itself, or to the map of labels.
  std::vector<const google::protobuf::FieldDescriptor*> path_;
  std::string label_;
};

}  // namespace ringmaster::coordinator
