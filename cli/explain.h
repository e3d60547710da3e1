#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ringmaster::cli {

// The comments of a job-file field as text: its type, meaning, default and, for a group, its
// fields. `path` is dotted from the top of a job file ("optimizer.lr"); empty lists the top.
// InvalidArgument names the nearest known field.
absl::StatusOr<std::string> ExplainField(absl::string_view path);

// Serialized google.protobuf.FileDescriptorSet of the API with comments, embedded at build time.
absl::string_view ApiDescriptors();

}  // namespace ringmaster::cli
