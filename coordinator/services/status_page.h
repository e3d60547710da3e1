#pragma once

#include <string>

#include "coordinator/core/core.h"

namespace ringmaster::coordinator {

// One HTML page without scripts: what the coordinator does right now. At most 100 jobs.
std::string StatusPage(const CoreSnapshot& snapshot);

}  // namespace ringmaster::coordinator
