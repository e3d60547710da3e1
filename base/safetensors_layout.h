#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/safetensors.h"

namespace ringmaster::safetensors {

// The bytes of a tensor's data. InvalidArgument for a negative size or an overflow of 63 bits.
absl::StatusOr<uint64_t> ShapeBytes(const TensorSpec& tensor);

}  // namespace ringmaster::safetensors
