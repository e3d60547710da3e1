#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "attention/plan/options.h"
#include "tests/tools/attention_runner_input.h"

namespace ringmaster::tools {

// The tensors of OUT, on the CPU: the operator run by `ranks` threads that share the sequence and
// swap rows through memory. Ranks beyond the number of tokens hold none.
absl::StatusOr<std::map<std::string, at::Tensor>> RunRanks(
    const RunnerInput& input, const attention::DilatedAttentionOptions& options, at::Device device,
    int64_t ranks);

}  // namespace ringmaster::tools
