#pragma once

#include <vector>

#include "cli/commands.h"

namespace ringmaster::cli {

// Workers in the format that the user wants, a row each or whole.
void PrintWorkers(const CommandContext& context, const std::vector<const v1::Worker*>& workers);

}  // namespace ringmaster::cli
