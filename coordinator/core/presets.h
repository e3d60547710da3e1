#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ringmaster::coordinator {

// A model known by name: its sizes and the branches it has unless the job says otherwise. Workers
// never see a preset's name as a size: the stored spec carries every number.
struct ModelPreset {
  std::string name;
  int32_t layers = 0;
  int32_t dim = 0;
  int32_t heads = 0;
  std::vector<int64_t> segment_lengths;
  std::vector<int64_t> dilation_rates;
};

// Smallest first.
const std::vector<ModelPreset>& ModelPresets();

// Null when there is none.
const ModelPreset* FindModelPreset(absl::string_view name);

}  // namespace ringmaster::coordinator
