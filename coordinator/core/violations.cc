#include "coordinator/core/violations.h"

#include <limits>

#include "absl/strings/str_join.h"

namespace ringmaster::coordinator {

void Violations::Field(absl::string_view field, absl::string_view description) {
  fields_.push_back({Path(field), std::string(description)});
}

void Violations::Shape(absl::string_view field, int64_t given, int64_t multiple,
                       const std::vector<int64_t>& nearest, absl::string_view rule) {
  v1::ShapeViolation& shape = shapes_.emplace_back();
  shape.set_field(Path(field));
  shape.set_given(given);
  shape.set_required_multiple(multiple);
  shape.mutable_nearest_valid()->Assign(nearest.begin(), nearest.end());
  shape.set_rule(std::string(rule));
  Field(field, absl::StrCat("is ", given, ", but ", rule,
                            " must hold; nearest valid: ", absl::StrJoin(nearest, ", ")));
}

void Violations::Multiple(absl::string_view field, int64_t given, int64_t multiple,
                          absl::string_view rule) {
  if (given % multiple == 0) return;
  const int64_t below = given / multiple * multiple;
  std::vector<int64_t> nearest;
  if (below > 0) nearest.push_back(below);
  if (below <= std::numeric_limits<int64_t>::max() - multiple) nearest.push_back(below + multiple);
  Shape(field, given, multiple, nearest, rule);
}

absl::Status Violations::ToStatus() const {
  return fields_.empty() ? absl::OkStatus() : InvalidFields(fields_, shapes_);
}

}  // namespace ringmaster::coordinator
