#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ringmaster::worker {

struct ConvertTorchscaleOptions {
  // A safetensors file with the state dict of a LongNet decoder; models/torchscale_weights.h says
  // of which.
  std::string weights;
  // The checkpoint becomes {directory}/checkpoints/step-00000000.
  std::string directory;
  // What the weights do not tell.
  int64_t heads = 0;
  std::vector<int64_t> segment_lengths;
  std::vector<int64_t> dilation_rates;
  bool scaled_embedding = false;
};

// Writes a checkpoint of the parameters alone, which `init_from` takes, and returns the beginning
// of a job file that begins with it: YAML lines for init_from, model and attention. InvalidArgument
// for options or weights that do not fit, AlreadyExists when there is such a checkpoint, else what
// the system says; after an error there is no manifest.json. Blocks.
absl::StatusOr<std::string> ConvertTorchscale(const ConvertTorchscaleOptions& options);

}  // namespace ringmaster::worker
