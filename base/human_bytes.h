#pragma once

#include <string>

namespace ringmaster {

// "12.3 MiB".
std::string HumanBytes(double bytes);

}  // namespace ringmaster
