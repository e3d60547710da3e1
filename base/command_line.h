#pragma once

#include <vector>

namespace ringmaster {

// The arguments with each "--flag=" as "--flag" and "": CLI11 would take the next argument for the
// value. Changes the strings of `argv`, in which the result points.
std::vector<const char*> SplitEmptyValues(int argc, char** argv);

}  // namespace ringmaster
