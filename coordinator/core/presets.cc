#include "coordinator/core/presets.h"

namespace ringmaster::coordinator {

const std::vector<ModelPreset>& ModelPresets() {
  // LongNet (arXiv 2307.02486), section 4: the branches of its language models.
  static const std::vector<int64_t> kLengths = {2048, 4096, 8192, 16384, 32768};
  static const std::vector<int64_t> kRates = {1, 2, 4, 6, 12};
  // Its table 4 gives the sizes; the vocabulary here is bytes, so parameter counts are the paper's
  // without the large embedding.
  static const auto& presets = *new std::vector<ModelPreset>{
      {"tiny", 2, 128, 4, {512, 2048, 8192}, {1, 4, 16}},
      {"longnet-12x768", 12, 768, 12, kLengths, kRates},
      {"longnet-125m", 12, 768, 12, kLengths, kRates},
      {"longnet-350m", 24, 1024, 16, kLengths, kRates},
      {"longnet-760m", 24, 1536, 16, kLengths, kRates},
      {"longnet-2.7b", 32, 2560, 32, kLengths, kRates},
  };
  return presets;
}

const ModelPreset* FindModelPreset(absl::string_view name) {
  for (const ModelPreset& preset : ModelPresets()) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

}  // namespace ringmaster::coordinator
