#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {

// Everything that is wrong with a request, so that a user can mend it in one go.
class Violations {
 public:
  // Fields are named by their path below `prefix`, "training_job.spec" for example.
  explicit Violations(absl::string_view prefix) : prefix_(prefix) {}
  // For what follows.
  void UsePrefix(absl::string_view prefix) { prefix_ = std::string(prefix); }

  void Field(absl::string_view field, absl::string_view description);
  // `given` breaks a rule between fields; `nearest` are valid values next to it, ascending.
  // `multiple` is 0 unless the rule is divisibility.
  void Shape(absl::string_view field, int64_t given, int64_t multiple,
             const std::vector<int64_t>& nearest, absl::string_view rule);
  // `given` must be a positive multiple of `multiple` >= 1.
  void Multiple(absl::string_view field, int64_t given, int64_t multiple, absl::string_view rule);

  bool empty() const { return fields_.empty(); }
  absl::Status ToStatus() const;

 private:
  std::string Path(absl::string_view field) const {
    return prefix_.empty() ? std::string(field) : absl::StrCat(prefix_, ".", field);
  }

  std::string prefix_;
  std::vector<FieldViolation> fields_;
  std::vector<v1::ShapeViolation> shapes_;
};

}  // namespace ringmaster::coordinator
