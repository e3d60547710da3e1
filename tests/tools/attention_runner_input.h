#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/plan/options.h"

// What attention_runner reads and writes. Every error is one sentence that names the file and what
// is wrong in it.
namespace ringmaster::tools {

struct RunnerInput {
  at::Tensor q, k, v;
  at::Tensor dout;  // undefined when the file has none
};

// The six keys of a SPEC file, all required, none other.
absl::StatusOr<attention::DilatedAttentionOptions> ReadSpec(const std::string& path);

// The tensors of an IN file, checked against each other and against `options`: shapes, dtypes, and
// finite values, in dout only where a branch covers the position.
absl::StatusOr<RunnerInput> ReadInput(const std::string& path,
                                      const attention::DilatedAttentionOptions& options);

// Writes beside `path` and renames, so that an error leaves no file.
absl::Status WriteOutput(const std::string& path, const std::map<std::string, at::Tensor>& tensors);

}  // namespace ringmaster::tools
