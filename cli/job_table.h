#pragma once

#include <vector>

#include "cli/commands.h"

namespace ringmaster::cli {

// Jobs in the format that the user wants, a row each or whole; `one`: not as a list of one.
void PrintJobs(const CommandContext& context, const std::vector<const v1::TrainingJob*>& jobs,
               bool one);

}  // namespace ringmaster::cli
