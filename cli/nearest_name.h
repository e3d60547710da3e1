#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ringmaster::cli {

// The candidate closest to `given` by edit distance, for "did you mean"; empty when none is within
// a third of its length. Ties go to the earlier candidate.
std::string NearestName(std::string_view given, const std::vector<std::string>& candidates);

// " (did you mean \"lr\"?)", or empty.
std::string DidYouMean(std::string_view given, const std::vector<std::string>& candidates);

}  // namespace ringmaster::cli
